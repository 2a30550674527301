"""Gemma: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.gemma.tiny_models import GEMMA_MODELS
from tests.parity import ConversionSuite


class TestGemmaConversion(ConversionSuite):
    models = GEMMA_MODELS
