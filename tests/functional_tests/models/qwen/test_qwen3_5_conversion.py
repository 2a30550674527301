"""Qwen3.5 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN3_5_MODELS
from tests.parity import ConversionSuite


class TestQwen3_5Conversion(ConversionSuite):
    models = QWEN3_5_MODELS
