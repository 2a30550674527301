"""MiniMax-M2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.minimax.tiny_models import MINIMAX_M2_MODELS


class TestMiniMaxM2Bridge(BridgeSuite):
    models = MINIMAX_M2_MODELS
