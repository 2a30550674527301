"""GLM-4.5 and GLM-4.6: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.glm.tiny_models import GLM4_MOE_MODELS


class TestGlm4MoeBridge(BridgeSuite):
    models = GLM4_MOE_MODELS
