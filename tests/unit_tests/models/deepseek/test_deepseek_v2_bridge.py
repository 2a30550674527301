"""DeepSeek-V2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V2_MODELS


class TestDeepseekV2Bridge(BridgeSuite):
    models = DEEPSEEK_V2_MODELS
