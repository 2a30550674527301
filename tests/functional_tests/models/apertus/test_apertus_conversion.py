"""Apertus: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.apertus.tiny_models import APERTUS_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestApertusConversion(ConversionSuite):
    models = APERTUS_MODELS


class TestApertusGradients(GradientSuite):
    cases = [("apertus-tied-bias", "tp2"), ("apertus-tied-bias", "tp2-sp")]
