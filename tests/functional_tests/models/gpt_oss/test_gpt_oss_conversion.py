"""gpt-oss: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.gpt_oss.tiny_models import GPT_OSS_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestGptOssConversion(ConversionSuite):
    models = GPT_OSS_MODELS


class TestGptOssGradients(GradientSuite):
    cases = [("gpt-oss", "tp2-sp")]
