"""Llama 4 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.llama.tiny_models import LLAMA4_MODELS


class TestLlama4Bridge(BridgeSuite):
    models = LLAMA4_MODELS
