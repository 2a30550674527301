"""Seed-OSS: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.seed_oss.tiny_models import SEED_OSS_MODELS


class TestSeedOssBridge(BridgeSuite):
    models = SEED_OSS_MODELS
