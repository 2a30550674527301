"""Qwen3.5 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.qwen.tiny_models import QWEN3_5_MODELS


class TestQwen3_5Bridge(BridgeSuite):
    models = QWEN3_5_MODELS
