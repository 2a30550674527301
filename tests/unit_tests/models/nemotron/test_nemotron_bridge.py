"""Nemotron-3, Nemotron-4 and Minitron (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.nemotron.tiny_models import NEMOTRON_MODELS


class TestNemotronBridge(BridgeSuite):
    models = NEMOTRON_MODELS
