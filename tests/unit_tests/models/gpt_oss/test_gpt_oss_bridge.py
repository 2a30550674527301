"""gpt-oss: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.gpt_oss.tiny_models import GPT_OSS_MODELS


class TestGptOssBridge(BridgeSuite):
    models = GPT_OSS_MODELS
