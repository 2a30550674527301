"""OLMo 2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.olmo.tiny_models import OLMO2_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestOlmo2Conversion(ConversionSuite):
    models = OLMO2_MODELS


class TestOlmo2Gradients(GradientSuite):
    cases = [("olmo2", "tp2"), ("olmo2", "tp2-sp")]
