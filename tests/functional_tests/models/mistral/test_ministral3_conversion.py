"""Ministral 3 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mistral.tiny_models import MINISTRAL3_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestMinistral3Conversion(ConversionSuite):
    models = MINISTRAL3_MODELS


class TestMinistral3Gradients(GradientSuite):
    cases = [("ministral3", "tp2"), ("ministral3", "tp2-sp")]
