"""Gemma 2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.gemma.tiny_models import GEMMA2_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestGemma2Conversion(ConversionSuite):
    models = GEMMA2_MODELS


class TestGemma2Gradients(GradientSuite):
    cases = [("gemma2", "tp2"), ("gemma2", "tp2-sp")]
