"""Tiny models of Gemma to Gemma 4."""

from tests.tiny_model import BIAS, TIED, TinyModel

# Caps of the size of the values that they cap, so that they matter.
_GEMMA2 = {
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
_NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
_GEMMA3 = {
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "final_logit_softcapping": 3.0,
}
_GEMMA3_LINEAR = {
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
_GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "final_logit_softcapping": 3.0,
    "hidden_size_per_layer_input": 0,
}
_GEMMA4_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
_GEMMA4_PER_LAYER = {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 130}
# Of six layers the last three use the keys and values of the third and the second.
_GEMMA4_SHARED = {
    "num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 3,
    "output_hidden_states": True,  # without this, transformers 5.23 fails where layers have no inputs of their own
}  # fmt: skip
_GEMMA4_WIDE = {**_GEMMA4_SHARED, "use_double_wide_mlp": True}
_K_EQ_V = {"attention_k_eq_v": True, "num_key_value_heads": 4, "num_global_key_value_heads": 2}

GEMMA_MODELS = (
    TinyModel("gemma", "GemmaForCausalLM", {"head_dim": 24}),
    TinyModel("gemma-tied-bias", "GemmaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
)

GEMMA2_MODELS = (
    TinyModel("gemma2", "Gemma2ForCausalLM", _GEMMA2),
    TinyModel("gemma2-tied-bias", "Gemma2ForCausalLM", {**_GEMMA2, "tie_word_embeddings": True, **BIAS}),
    TinyModel("gemma2-no-caps", "Gemma2ForCausalLM", {**_GEMMA2, **_NO_CAPS}),
)

GEMMA3_MODELS = (
    TinyModel("gemma3", "Gemma3ForCausalLM", _GEMMA3),
    TinyModel("gemma3-tied-linear-rope", "Gemma3ForCausalLM", {**_GEMMA3, **_GEMMA3_LINEAR}),
)

GEMMA4_MODELS = (
    TinyModel("gemma4", "Gemma4ForCausalLM", _GEMMA4),
    TinyModel("gemma4-keys-are-values", "Gemma4ForCausalLM", {**_GEMMA4, **BIAS, **TIED, **_K_EQ_V}),
    TinyModel("gemma4-moe", "Gemma4ForCausalLM", {**_GEMMA4, **TIED, **_K_EQ_V, **_GEMMA4_MOE}),
    TinyModel("gemma4-per-layer", "Gemma4ForCausalLM", {**_GEMMA4, **_GEMMA4_PER_LAYER}),
    TinyModel("gemma4-shared", "Gemma4ForCausalLM", {**_GEMMA4, **_GEMMA4_SHARED}),
    TinyModel("gemma4-shared-wide", "Gemma4ForCausalLM", {**_GEMMA4, **_GEMMA4_WIDE, **TIED}),
    TinyModel("gemma4-e2b", "Gemma4ForCausalLM", {**_GEMMA4, **TIED, **_GEMMA4_WIDE, **_GEMMA4_PER_LAYER}),
    TinyModel(
        "gemma4-everything",
        "Gemma4ForCausalLM",
        {**_GEMMA4, **BIAS, **_K_EQ_V, **_GEMMA4_MOE, "top_k_experts": 1, **_GEMMA4_WIDE, **_GEMMA4_PER_LAYER},
    ),
)
TINY_MODELS = (*GEMMA_MODELS, *GEMMA2_MODELS, *GEMMA3_MODELS, *GEMMA4_MODELS)
