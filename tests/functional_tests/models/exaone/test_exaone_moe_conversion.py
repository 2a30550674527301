"""EXAONE mixture of experts: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.exaone.tiny_models import EXAONE_MOE_MODELS
from tests.parity import ConversionSuite


class TestExaoneMoeConversion(ConversionSuite):
    models = EXAONE_MOE_MODELS
