"""EXAONE 4.0: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.exaone.tiny_models import EXAONE4_MODELS


class TestExaone4Bridge(BridgeSuite):
    models = EXAONE4_MODELS
    refused = [("exaone4", {"layer_types": ["full_attention"] * 4}, "leaves every layer without rope")]
