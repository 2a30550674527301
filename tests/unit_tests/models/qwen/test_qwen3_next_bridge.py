"""Qwen3-Next: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN3_NEXT_MODELS


class TestQwen3NextBridge(BridgeSuite):
    models = QWEN3_NEXT_MODELS
