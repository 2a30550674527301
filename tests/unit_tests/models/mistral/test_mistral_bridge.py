"""Mistral (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.mistral.tiny_models import MISTRAL_MODELS


class TestMistralBridge(BridgeSuite):
    models = MISTRAL_MODELS
