"""GLM-4.5 and GLM-4.6: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.glm.tiny_models import GLM4_MOE_MODELS
from tests.parity import ConversionSuite


class TestGlm4MoeConversion(ConversionSuite):
    models = GLM4_MOE_MODELS
