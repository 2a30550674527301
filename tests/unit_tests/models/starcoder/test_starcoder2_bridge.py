"""StarCoder2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.starcoder.tiny_models import STARCODER2_MODELS


class TestStarcoder2Bridge(BridgeSuite):
    models = STARCODER2_MODELS
