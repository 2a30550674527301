"""OLMo 3: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.olmo.tiny_models import OLMO3_MODELS


class TestOlmo3Bridge(BridgeSuite):
    models = OLMO3_MODELS
