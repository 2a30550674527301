"""ERNIE 4.5 mixtures of experts (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.ernie.tiny_models import ERNIE_4_5_MOE_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestErnie45MoeConversion(ConversionSuite):
    models = ERNIE_4_5_MOE_MODELS


class TestErnie45MoeGradients(GradientSuite):
    cases = [("ernie-4.5-moe", "tp2-sp")]
