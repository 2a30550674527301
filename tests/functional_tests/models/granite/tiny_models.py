"""Tiny models of Granite, dense and with experts."""

from tests.tiny_model import BIAS, TIED, TinyModel

_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}
_GRANITE_MOE = {
    "num_local_experts": 4, "num_experts_per_tok": 2,
    "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 4.0,
}  # fmt: skip

GRANITE_MOE_MODELS = (
    TinyModel("granite-moe", "GraniteMoeForCausalLM", _GRANITE_MOE),
    TinyModel("granite-moe-attention-bias", "GraniteMoeForCausalLM", {**_GRANITE_MOE, "attention_bias": True}),
)

GRANITE_MODELS = (
    TinyModel("granite", "GraniteForCausalLM", _GRANITE),
    TinyModel("granite-tied-biases", "GraniteForCausalLM", {**_GRANITE, **BIAS, "mlp_bias": True, **TIED}),
)
TINY_MODELS = (*GRANITE_MOE_MODELS, *GRANITE_MODELS)
