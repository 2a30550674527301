"""Qwen3-Next: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN3_NEXT_MODELS
from tests.parity import ConversionSuite


class TestQwen3NextConversion(ConversionSuite):
    models = QWEN3_NEXT_MODELS
