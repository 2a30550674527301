"""Qwen3 (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN3_MODELS
from tests.parity import ConversionSuite


class TestQwen3Conversion(ConversionSuite):
    models = QWEN3_MODELS
    whole = ["qwen3"]
