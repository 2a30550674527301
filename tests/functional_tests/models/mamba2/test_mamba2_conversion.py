"""Mamba-2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mamba2.tiny_models import MAMBA2_MODELS
from tests.parity import ConversionSuite


class TestMamba2Conversion(ConversionSuite):
    models = MAMBA2_MODELS
