"""DeepSeek-V2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V2_MODELS
from tests.parity import ConversionSuite


class TestDeepseekV2Conversion(ConversionSuite):
    models = DEEPSEEK_V2_MODELS
