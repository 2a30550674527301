"""Qwen2 and Qwen2.5: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN2_MODELS
from tests.parity import ConversionSuite


class TestQwen2Conversion(ConversionSuite):
    models = QWEN2_MODELS
    whole = ["qwen2"]
