"""Ling 2.0: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.bailing.tiny_models import BAILING_MOE_V2_MODELS


class TestBailingMoeV2Bridge(BridgeSuite):
    models = BAILING_MOE_V2_MODELS
    stated_twice = ("rope_parameters",)  # the class keeps rope_theta and partial_rotary_factor apart
