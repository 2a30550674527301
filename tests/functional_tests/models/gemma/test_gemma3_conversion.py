"""Gemma 3 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.gemma.tiny_models import GEMMA3_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestGemma3Conversion(ConversionSuite):
    models = GEMMA3_MODELS


class TestGemma3Gradients(GradientSuite):
    cases = [("gemma3", "tp2"), ("gemma3", "tp2-sp")]
