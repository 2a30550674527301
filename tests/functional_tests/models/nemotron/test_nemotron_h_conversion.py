"""Nemotron-H and Nemotron 3: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.nemotron.tiny_models import NEMOTRON_H_MODELS
from tests.parity import ConversionSuite


class TestNemotronHConversion(ConversionSuite):
    models = NEMOTRON_H_MODELS
