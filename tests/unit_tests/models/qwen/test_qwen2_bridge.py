"""Qwen2 and Qwen2.5: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN2_MODELS


class TestQwen2Bridge(BridgeSuite):
    models = QWEN2_MODELS
