"""Granite 3.x mixtures of experts: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.granite.tiny_models import GRANITE_MOE_MODELS
from tests.parity import ConversionSuite


class TestGraniteMoeConversion(ConversionSuite):
    models = GRANITE_MOE_MODELS
