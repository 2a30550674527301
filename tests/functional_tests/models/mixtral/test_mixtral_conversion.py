"""Mixtral: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mixtral.tiny_models import MIXTRAL_MODELS
from tests.parity import ConversionSuite


class TestMixtralConversion(ConversionSuite):
    models = MIXTRAL_MODELS
