"""SmolLM3: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.smollm.tiny_models import SMOLLM3_MODELS


class TestSmolLM3Bridge(BridgeSuite):
    models = SMOLLM3_MODELS
