"""Tiny models of Phi and Phi-3."""

from tests.tiny_model import TIED, TinyModel, rope

_PHI3_LONGROPE = {
    "original_max_position_embeddings": 32,
    **rope("longrope", partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.3, 2.0], long_factor=[1.0, 2.0, 4.0, 8.0]),
}

PHI3_MODELS = (
    TinyModel("phi3", "Phi3ForCausalLM"),
    TinyModel("phi3-window", "Phi3ForCausalLM", {"sliding_window": 8, "num_key_value_heads": 4}),
    TinyModel("phi3-partial-longrope-long", "Phi3ForCausalLM", _PHI3_LONGROPE),
    TinyModel("phi3-partial-longrope-short", "Phi3ForCausalLM", _PHI3_LONGROPE, seq_length=24),
)

PHI_MODELS = (
    TinyModel("phi", "PhiForCausalLM"),
    TinyModel("phi-tied-qk-norm", "PhiForCausalLM", {**TIED, "qk_layernorm": True}),
    TinyModel("phi-odd-vocabulary", "PhiForCausalLM", {"vocab_size": 131}),
)
TINY_MODELS = (*PHI3_MODELS, *PHI_MODELS)
