"""ERNIE 4.5 (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.ernie.tiny_models import ERNIE_4_5_MODELS
from tests.parity import ConversionSuite


class TestErnie45Conversion(ConversionSuite):
    models = ERNIE_4_5_MODELS
