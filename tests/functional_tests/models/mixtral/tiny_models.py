"""Tiny models of Mixtral."""

from tests.tiny_model import TinyModel

MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}

MIXTRAL_MODELS = (
    TinyModel("mixtral", "MixtralForCausalLM", MIXTRAL),
    TinyModel("mixtral-window", "MixtralForCausalLM", {**MIXTRAL, "sliding_window": 8, "head_dim": 24}),
)
TINY_MODELS = MIXTRAL_MODELS
