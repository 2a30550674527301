"""Mixtral: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.mixtral.tiny_models import MIXTRAL_MODELS


class TestMixtralBridge(BridgeSuite):
    models = MIXTRAL_MODELS
