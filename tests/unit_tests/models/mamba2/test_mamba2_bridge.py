"""Mamba-2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.mamba2.tiny_models import MAMBA2_MODELS


class TestMamba2Bridge(BridgeSuite):
    models = MAMBA2_MODELS
