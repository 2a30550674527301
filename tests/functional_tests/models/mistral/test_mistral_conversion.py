"""Mistral (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mistral.tiny_models import MISTRAL_MODELS
from tests.parity import ConversionSuite


class TestMistralConversion(ConversionSuite):
    models = MISTRAL_MODELS
    whole = ["mistral"]
