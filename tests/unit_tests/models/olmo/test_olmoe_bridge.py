"""OLMoE: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.olmo.tiny_models import OLMOE_MODELS


class TestOlmoeBridge(BridgeSuite):
    models = OLMOE_MODELS
