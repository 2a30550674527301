"""MiMo: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mimo.tiny_models import MIMO_MODELS
from tests.parity import ConversionSuite


class TestMiMoConversion(ConversionSuite):
    models = MIMO_MODELS
