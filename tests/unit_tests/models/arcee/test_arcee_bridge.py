"""Arcee (AFM): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.arcee.tiny_models import ARCEE_MODELS


class TestArceeBridge(BridgeSuite):
    models = ARCEE_MODELS
