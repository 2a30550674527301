"""StableLM 2 and StableLM 3B: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.stablelm.tiny_models import STABLELM_MODELS


class TestStableLmBridge(BridgeSuite):
    models = STABLELM_MODELS
    refused = [("stablelm", {"hidden_dropout": 0.1}, "hidden_dropout: expected 0, found 0.1")]
