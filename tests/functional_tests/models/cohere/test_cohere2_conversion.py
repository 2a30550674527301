"""Command R7B and Command A (Cohere 2): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.cohere.tiny_models import COHERE2_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestCohere2Conversion(ConversionSuite):
    models = COHERE2_MODELS


class TestCohere2Gradients(GradientSuite):
    cases = [("cohere2", "tp2"), ("cohere2", "tp2-sp")]
