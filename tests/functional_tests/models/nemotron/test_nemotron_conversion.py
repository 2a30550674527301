"""Nemotron-3, Nemotron-4 and Minitron (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.nemotron.tiny_models import NEMOTRON_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestNemotronConversion(ConversionSuite):
    models = NEMOTRON_MODELS


class TestNemotronGradients(GradientSuite):
    cases = [("nemotron", "tp2"), ("nemotron", "tp2-sp")]
