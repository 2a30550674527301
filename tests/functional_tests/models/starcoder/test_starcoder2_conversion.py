"""StarCoder2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.starcoder.tiny_models import STARCODER2_MODELS
from tests.parity import ConversionSuite


class TestStarcoder2Conversion(ConversionSuite):
    models = STARCODER2_MODELS
