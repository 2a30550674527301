"""Qwen1.5 and Qwen2 mixtures of experts: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.qwen.tiny_models import QWEN2_MOE_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestQwen2MoeConversion(ConversionSuite):
    models = QWEN2_MOE_MODELS


class TestQwen2MoeGradients(GradientSuite):
    cases = [("qwen2-moe", "tp2-sp")]
