"""Tiny models of LFM2, dense and with experts."""

from tests.tiny_model import TinyModel

_LFM2 = {
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 20,
}  # fmt: skip
_LFM2_VARIANT = {
    "full_attn_idxs": [0, 2], "conv_bias": True, "conv_L_cache": 4, "norm_eps": 1e-3,
    "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True,
}  # fmt: skip
_LFM2_MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1,
    "layer_types": ["conv", "conv", "full_attention", "conv"], "routed_scaling_factor": 1.5,
}  # fmt: skip
_LFM2_MOE_VARIANT = {
    "num_dense_layers": 0, "use_expert_bias": False, "norm_topk_prob": False, "conv_bias": True,
    "layer_types": ["full_attention", "conv"] * 2, "tie_word_embeddings": True,
}  # fmt: skip

LFM2_MODELS = (
    TinyModel("lfm2", "Lfm2ForCausalLM", _LFM2),
    TinyModel("lfm2-tied-biases", "Lfm2ForCausalLM", _LFM2_VARIANT),
    TinyModel("lfm2-moe", "Lfm2MoeForCausalLM", _LFM2_MOE),
    TinyModel("lfm2-moe-tied-biases", "Lfm2MoeForCausalLM", {**_LFM2_MOE, **_LFM2_MOE_VARIANT}),
)
TINY_MODELS = LFM2_MODELS
