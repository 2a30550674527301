"""Granite 3.x (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.granite.tiny_models import GRANITE_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestGraniteConversion(ConversionSuite):
    models = GRANITE_MODELS


class TestGraniteGradients(GradientSuite):
    cases = [("granite", "tp2"), ("granite", "tp2-sp")]
