"""DeepSeek-V3.2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V32_MODELS


class TestDeepseekV32Bridge(BridgeSuite):
    models = DEEPSEEK_V32_MODELS
