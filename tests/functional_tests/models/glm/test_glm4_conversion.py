"""GLM-4-0414 (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.glm.tiny_models import GLM4_MODELS
from tests.parity import ConversionSuite


class TestGlm4Conversion(ConversionSuite):
    models = GLM4_MODELS
