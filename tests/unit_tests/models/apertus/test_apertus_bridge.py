"""Apertus: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.apertus.tiny_models import APERTUS_MODELS


class TestApertusBridge(BridgeSuite):
    models = APERTUS_MODELS
    refused = [("apertus", {"hidden_act": "relu2"}, "hidden_act: expected 'xielu', found 'relu2'")]
