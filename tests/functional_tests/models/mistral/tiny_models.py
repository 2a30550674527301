"""Tiny models of Mistral and Ministral 3."""

from tests.tiny_model import TinyModel, rope

_MISTRAL = "MistralForCausalLM"
_MINISTRAL3 = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}

MISTRAL_MODELS = (
    TinyModel("mistral", _MISTRAL, {"sliding_window": None}),
    TinyModel("mistral-window", _MISTRAL, {"sliding_window": 8}),
    TinyModel("mistral-head-dim", _MISTRAL, {"sliding_window": None, "head_dim": 32}),
)

MINISTRAL3_MODELS = (TinyModel("ministral3", "Ministral3ForCausalLM", {"head_dim": 16, **rope("yarn", **_MINISTRAL3)}),)
TINY_MODELS = (*MISTRAL_MODELS, *MINISTRAL3_MODELS)
