"""MiniMax-M2: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.minimax.tiny_models import MINIMAX_M2_MODELS
from tests.parity import ConversionSuite


class TestMiniMaxM2Conversion(ConversionSuite):
    models = MINIMAX_M2_MODELS
