"""Phi-3, Phi-3.5 and Phi-4 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.phi.tiny_models import PHI3_MODELS
from tests.parity import ConversionSuite


class TestPhi3Conversion(ConversionSuite):
    models = PHI3_MODELS
