"""dots.llm1: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.dots.tiny_models import DOTS1_MODELS
from tests.parity import ConversionSuite


class TestDots1Conversion(ConversionSuite):
    models = DOTS1_MODELS
