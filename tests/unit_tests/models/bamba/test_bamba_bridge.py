"""Bamba: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.bamba.tiny_models import BAMBA_MODELS


class TestBambaBridge(BridgeSuite):
    models = BAMBA_MODELS
