"""Ministral 3 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.mistral.tiny_models import MINISTRAL3_MODELS

_ROPE = {"rope_type": "default", "rope_theta": 1e4}


class TestMinistral3Bridge(BridgeSuite):
    models = MINISTRAL3_MODELS
    refused = [("ministral3", {"rope_parameters": _ROPE}, "must have llama_4_scaling_beta")]
