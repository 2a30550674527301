"""EXAONE 4.0: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.exaone.tiny_models import EXAONE4_MODELS
from tests.parity import ConversionSuite


class TestExaone4Conversion(ConversionSuite):
    models = EXAONE4_MODELS
