"""ERNIE 4.5 mixtures of experts (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.ernie.tiny_models import ERNIE_4_5_MOE_MODELS


class TestErnie45MoeBridge(BridgeSuite):
    models = ERNIE_4_5_MOE_MODELS
