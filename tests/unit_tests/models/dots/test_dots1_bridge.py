"""dots.llm1: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.dots.tiny_models import DOTS1_MODELS


class TestDots1Bridge(BridgeSuite):
    models = DOTS1_MODELS
