"""DeepSeek-V3, Kimi-K2 and Moonlight: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V3_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestDeepseekV3Conversion(ConversionSuite):
    models = DEEPSEEK_V3_MODELS


class TestDeepseekV3Gradients(GradientSuite):
    cases = [("deepseek-v3", "tp2-sp"), ("deepseek-v3-no-renormalisation", "tp2-sp"), ("moonlight", "tp2-sp")]
