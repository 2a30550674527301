"""Granite 3.x mixtures of experts: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.granite.tiny_models import GRANITE_MOE_MODELS


class TestGraniteMoeBridge(BridgeSuite):
    models = GRANITE_MOE_MODELS
