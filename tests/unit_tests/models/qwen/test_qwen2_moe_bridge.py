"""Qwen1.5 and Qwen2 mixtures of experts: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN2_MOE_MODELS


class TestQwen2MoeBridge(BridgeSuite):
    models = QWEN2_MOE_MODELS
