"""Falcon-H1: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.falcon.tiny_models import FALCON_H1_MODELS
from tests.parity import ConversionSuite


class TestFalconH1Conversion(ConversionSuite):
    models = FALCON_H1_MODELS
