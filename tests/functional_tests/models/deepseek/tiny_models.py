"""Tiny models of DeepSeek-V2, V3 and V3.2, and of Kimi-K2 and Moonlight, which are V3's."""

from tests.tiny_model import TinyModel, rope

_DEEPSEEK = "DeepseekV3ForCausalLM"
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GROUPED_SIGMOID = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
_DEEPSEEK_V3 = {**MLA, **GROUPED_SIGMOID, "n_shared_experts": 2}
_DEEPSEEK_YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
_KIMI_YARN = {"beta_fast": 1.0, "beta_slow": 1.0}
_KIMI_JSON = {
    "model_type": "kimi_k2",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 0,
    "seq_aux": True, "aux_loss_alpha": 0.001, "ep_size": 1, "pretraining_tp": 1, "attention_bias": False,
}  # fmt: skip
_DEEPSEEK_V2 = {
    **MLA,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK_V32 = {
    **_DEEPSEEK_V3,
    "index_topk": 12, "index_head_dim": 24, "index_n_heads": 3, "rope_parameters": {"rope_theta": 10000.0},
    "num_nextn_predict_layers": 1,
}  # fmt: skip

DEEPSEEK_V3_MODELS = (
    TinyModel("deepseek-v3", _DEEPSEEK, {**_DEEPSEEK_V3, **rope("yarn", **_DEEPSEEK_YARN)}),
    TinyModel("deepseek-v3-default-rope", _DEEPSEEK, {**_DEEPSEEK_V3, "rms_norm_eps": 1e-3}),
    TinyModel(
        "deepseek-v3-mscales",
        _DEEPSEEK,
        {**_DEEPSEEK_V3, **rope("yarn", **{**_DEEPSEEK_YARN, "mscale": 0.7, "mscale_all_dim": 0.5})},
    ),
    TinyModel(
        "deepseek-v3-no-mscale",
        _DEEPSEEK,
        {**_DEEPSEEK_V3, **rope("yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0)},
        seed=1,
    ),
    TinyModel("deepseek-v3-topk-6", _DEEPSEEK, {**_DEEPSEEK_V3, "num_experts_per_tok": 6}),
    TinyModel("deepseek-v3-no-renormalisation", _DEEPSEEK, {**_DEEPSEEK_V3, "norm_topk_prob": False}),
    TinyModel(
        "kimi-k2",
        _DEEPSEEK,
        {**_DEEPSEEK_V3, "n_group": 1, "topk_group": 1, **rope("yarn", **_DEEPSEEK_YARN, **_KIMI_YARN)},
        config_json=_KIMI_JSON,
    ),
    TinyModel(
        "moonlight",
        _DEEPSEEK,
        {**_DEEPSEEK_V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5},
    ),
)

DEEPSEEK_V2_MODELS = (
    TinyModel("deepseek-v2", "DeepseekV2ForCausalLM", _DEEPSEEK_V2),
    TinyModel(
        "deepseek-v2-groups",
        "DeepseekV2ForCausalLM",
        {
            **_DEEPSEEK_V2,
            "num_experts_per_tok": 6, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 3,
            **rope("yarn", **{**_DEEPSEEK_YARN, "mscale": 0.7, "mscale_all_dim": 0.7}),
        },
    ),
    TinyModel("deepseek-v2-lite", "DeepseekV2ForCausalLM", {**_DEEPSEEK_V2, "q_lora_rank": None}),
)  # fmt: skip

DEEPSEEK_V32_MODELS = (
    TinyModel("deepseek-v3.2", "DeepseekV32ForCausalLM", {**DEEPSEEK_V32, **rope("yarn", **_DEEPSEEK_YARN)}),
    TinyModel("deepseek-v3.2-all-keys", "DeepseekV32ForCausalLM", {**DEEPSEEK_V32, "index_topk": 64}),
)
TINY_MODELS = (*DEEPSEEK_V3_MODELS, *DEEPSEEK_V2_MODELS, *DEEPSEEK_V32_MODELS)
