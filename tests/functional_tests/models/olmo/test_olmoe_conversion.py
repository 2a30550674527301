"""OLMoE: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.olmo.tiny_models import OLMOE_MODELS
from tests.parity import ConversionSuite


class TestOlmoeConversion(ConversionSuite):
    models = OLMOE_MODELS
