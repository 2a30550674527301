"""Arcee (AFM): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.arcee.tiny_models import ARCEE_MODELS
from tests.parity import ConversionSuite


class TestArceeConversion(ConversionSuite):
    models = ARCEE_MODELS
