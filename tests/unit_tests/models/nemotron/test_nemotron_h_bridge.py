"""Nemotron-H and Nemotron 3: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.nemotron.tiny_models import NEMOTRON_H_MODELS


class TestNemotronHBridge(BridgeSuite):
    models = NEMOTRON_H_MODELS
