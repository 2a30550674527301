"""GLM-4.7-Flash: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.glm.tiny_models import GLM4_MOE_LITE_MODELS


class TestGlm4MoeLiteBridge(BridgeSuite):
    models = GLM4_MOE_LITE_MODELS
