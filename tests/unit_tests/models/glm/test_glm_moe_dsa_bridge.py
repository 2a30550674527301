"""GLM-5: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.glm.tiny_models import GLM_MOE_DSA_MODELS


class TestGlmMoeDsaBridge(BridgeSuite):
    models = GLM_MOE_DSA_MODELS
