"""DeepSeek-V3.2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V32_MODELS
from tests.parity import ConversionSuite


class TestDeepseekV32Conversion(ConversionSuite):
    models = DEEPSEEK_V32_MODELS
