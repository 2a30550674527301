"""Llama 4 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.llama.tiny_models import LLAMA4_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestLlama4Conversion(ConversionSuite):
    models = LLAMA4_MODELS


class TestLlama4Gradients(GradientSuite):
    cases = [("llama4", "tp2-sp")]
