"""ERNIE 4.5 (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.ernie.tiny_models import ERNIE_4_5_MODELS


class TestErnie45Bridge(BridgeSuite):
    models = ERNIE_4_5_MODELS
