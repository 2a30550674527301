"""Qwen3 mixture of experts: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN3_MOE_MODELS


class TestQwen3MoeBridge(BridgeSuite):
    models = QWEN3_MOE_MODELS
