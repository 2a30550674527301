"""OLMo 2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.olmo.tiny_models import OLMO2_MODELS


class TestOlmo2Bridge(BridgeSuite):
    models = OLMO2_MODELS
