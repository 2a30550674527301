"""Tiny models of EXAONE 4 and EXAONE MoE."""

from tests.tiny_model import TIED, TinyModel

_ALL_FULL = {"layer_types": ["full_attention"] * 4}
_EXAONE_MOE = {
    "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "num_shared_experts": 2,
    "head_dim": 24,
}  # fmt: skip

EXAONE_MOE_MODELS = (TinyModel("exaone-moe", "ExaoneMoeForCausalLM", {**_EXAONE_MOE, "sliding_window": 8}),)

EXAONE4_MODELS = (
    TinyModel("exaone4", "Exaone4ForCausalLM", {"sliding_window": 8}),
    TinyModel("exaone4-tied-no-window", "Exaone4ForCausalLM", {"sliding_window": None, **_ALL_FULL, **TIED}),
)
TINY_MODELS = (*EXAONE_MOE_MODELS, *EXAONE4_MODELS)
