"""Qwen3 (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN3_MODELS


class TestQwen3Bridge(BridgeSuite):
    models = QWEN3_MODELS
