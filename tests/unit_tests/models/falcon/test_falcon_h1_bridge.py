"""Falcon-H1: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.falcon.tiny_models import FALCON_H1_MODELS


class TestFalconH1Bridge(BridgeSuite):
    models = FALCON_H1_MODELS
