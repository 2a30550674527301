"""GLM-4.7-Flash: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.glm.tiny_models import GLM4_MOE_LITE_MODELS
from tests.parity import ConversionSuite


class TestGlm4MoeLiteConversion(ConversionSuite):
    models = GLM4_MOE_LITE_MODELS
