"""GLM-5: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.glm.tiny_models import GLM_MOE_DSA_MODELS
from tests.parity import ConversionSuite


class TestGlmMoeDsaConversion(ConversionSuite):
    models = GLM_MOE_DSA_MODELS
