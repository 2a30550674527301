"""Phi-1, Phi-1.5 and Phi-2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.phi.tiny_models import PHI_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestPhiConversion(ConversionSuite):
    models = PHI_MODELS


class TestPhiGradients(GradientSuite):
    cases = [("phi-tied-qk-norm", "tp2"), ("phi-tied-qk-norm", "tp2-sp")]
