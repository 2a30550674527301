"""DeepSeek-V3, Kimi-K2 and Moonlight: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V3_MODELS


class TestDeepseekV3Bridge(BridgeSuite):
    models = DEEPSEEK_V3_MODELS
