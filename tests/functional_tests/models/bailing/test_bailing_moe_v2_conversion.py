"""Ling 2.0: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.bailing.tiny_models import BAILING_MOE_V2_MODELS
from tests.parity import ConversionSuite


class TestBailingMoeV2Conversion(ConversionSuite):
    models = BAILING_MOE_V2_MODELS
