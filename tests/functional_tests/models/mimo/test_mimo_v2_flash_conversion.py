"""MiMo-V2-Flash: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.mimo.tiny_models import MIMO_V2_FLASH_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestMiMoV2FlashConversion(ConversionSuite):
    models = MIMO_V2_FLASH_MODELS


class TestMiMoV2FlashGradients(GradientSuite):
    cases = [("mimo-v2-flash-other-layers", "tp2-sp")]
