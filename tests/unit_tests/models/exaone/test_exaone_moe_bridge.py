"""EXAONE mixture of experts: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.exaone.tiny_models import EXAONE_MOE_MODELS


class TestExaoneMoeBridge(BridgeSuite):
    models = EXAONE_MOE_MODELS
