"""Bamba: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.bamba.tiny_models import BAMBA_MODELS
from tests.parity import ConversionSuite


class TestBambaConversion(ConversionSuite):
    models = BAMBA_MODELS
