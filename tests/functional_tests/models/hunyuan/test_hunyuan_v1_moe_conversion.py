"""HunYuan V1 mixture of experts (Hunyuan-A13B): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.hunyuan.tiny_models import HUNYUAN_V1_MOE_MODELS
from tests.parity import ConversionSuite


class TestHunYuanMoEV1Conversion(ConversionSuite):
    models = HUNYUAN_V1_MOE_MODELS
