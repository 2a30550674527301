"""HunYuan V1 (dense): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.hunyuan.tiny_models import HUNYUAN_V1_DENSE_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestHunYuanDenseV1Conversion(ConversionSuite):
    models = HUNYUAN_V1_DENSE_MODELS


class TestHunYuanDenseV1Gradients(GradientSuite):
    cases = [("hunyuan-dense", "tp2"), ("hunyuan-dense", "tp2-sp")]
