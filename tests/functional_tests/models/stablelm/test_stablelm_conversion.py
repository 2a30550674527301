"""StableLM 2 and StableLM 3B: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.stablelm.tiny_models import STABLELM_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestStableLmConversion(ConversionSuite):
    models = STABLELM_MODELS


class TestStableLmGradients(GradientSuite):
    cases = [("stablelm-head-norms", "tp2"), ("stablelm-head-norms", "tp2-sp")]
