"""Tiny models of MiniMax-M2."""

from tests.functional_tests.models.mixtral.tiny_models import MIXTRAL
from tests.tiny_model import TinyModel, rope

MINIMAX_M2_MODELS = (
    TinyModel("minimax-m2", "MiniMaxM2ForCausalLM", {**MIXTRAL, **rope("default", partial_rotary_factor=0.5)}),
)
TINY_MODELS = MINIMAX_M2_MODELS
