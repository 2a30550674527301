"""OLMo 3: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.olmo.tiny_models import OLMO3_MODELS
from tests.parity import ConversionSuite


class TestOlmo3Conversion(ConversionSuite):
    models = OLMO3_MODELS
