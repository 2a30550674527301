"""Qwen3 mixture of experts: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN3_MOE_MODELS
from tests.parity import ConversionSuite


class TestQwen3MoeConversion(ConversionSuite):
    models = QWEN3_MOE_MODELS
    whole = ["qwen3-moe"]
