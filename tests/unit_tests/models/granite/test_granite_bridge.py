"""Granite 3.x (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.granite.tiny_models import GRANITE_MODELS


class TestGraniteBridge(BridgeSuite):
    models = GRANITE_MODELS
