"""LFM2, dense and with experts: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.lfm2.tiny_models import LFM2_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestLfm2Conversion(ConversionSuite):
    models = LFM2_MODELS


class TestLfm2Gradients(GradientSuite):
    cases = [("lfm2-tied-biases", "tp2"), ("lfm2-tied-biases", "tp2-sp")]
