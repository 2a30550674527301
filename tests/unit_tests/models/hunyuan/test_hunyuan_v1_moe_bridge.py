"""HunYuan V1 mixture of experts (Hunyuan-A13B): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.hunyuan.tiny_models import HUNYUAN_V1_MOE_MODELS


class TestHunYuanMoEV1Bridge(BridgeSuite):
    models = HUNYUAN_V1_MOE_MODELS
