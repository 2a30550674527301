"""MiMo: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.mimo.tiny_models import MIMO_MODELS


class TestMiMoBridge(BridgeSuite):
    models = MIMO_MODELS
