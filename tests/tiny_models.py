"""The table of tiny models: one line per family and variant. Every suite that runs over families runs over it."""

from tests.tiny_model import TOLERANCE, TinyModel, randomize, rope

__all__ = ["TINY_MODELS", "TOLERANCE", "TinyModel", "randomize", "rope"]

_LLAMA, _QWEN2, _QWEN3, _MISTRAL = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"
_MIMO_JSON = {
    **{"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "auto_map": {"AutoConfig": "c.MiMoConfig"}},
    **{"attention_bias": True, "use_mrope": False, "num_nextn_predict_layers": 1},
}
_WINDOW_ON_SOME = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
_LONGROPE = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0],
    "original_max_position_embeddings": 32,
}
_LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 64}

_MINISTRAL3 = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
_SMOLLM3_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [1, 0, 1, 0]}
_PHI3_LONGROPE = {
    "original_max_position_embeddings": 32,
    **rope("longrope", partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.3, 2.0], long_factor=[1.0, 2.0, 4.0, 8.0]),
}

_BIAS = {"attention_bias": True}
_TIED = {"tie_word_embeddings": True}
_ALL_FULL = {"layer_types": ["full_attention"] * 4}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}
_OLMO3_YARN = {
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
_ALPHA_ROPE = rope("dynamic", alpha=50.0, factor=1.0)
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
# Scores are not scaled, so that the softmax is steep: transformers in float32 is up to 5.7e-5 from itself in float64.
_GEMMA4_TOLERANCE = 5e-5
_GEMMA4_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
_GEMMA4_PER_LAYER = {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 130}
# Of six layers the last three use the keys and values of the third and the second.
_GEMMA4_SHARED = {
    **{"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 3},
    "output_hidden_states": True,  # without this, transformers 5.23 fails where layers have no inputs of their own
}
_GEMMA4_WIDE = {**_GEMMA4_SHARED, "use_double_wide_mlp": True}
_K_EQ_V = {"attention_k_eq_v": True, "num_key_value_heads": 4, "num_global_key_value_heads": 2}

_MOE = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}

_QWEN2_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
_DELTA_NET = {
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_QWEN_MTP = {"mtp_num_hidden_layers": 1}
# transformers' own logits in fp32 and fp64 differ by up to 3.3e-5: the delta rule amplifies rounding.
_DELTA_NET_TOLERANCE = 5e-5
_MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
_DEEPSEEK = "DeepseekV3ForCausalLM"
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_GROUPED_SIGMOID = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
_DEEPSEEK_V3 = {**_MLA, **_GROUPED_SIGMOID, "n_shared_experts": 2}
_DEEPSEEK_YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
_KIMI_YARN = {"beta_fast": 1.0, "beta_slow": 1.0}
_KIMI_JSON = {
    "model_type": "kimi_k2",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    **{"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 0},
    **{"seq_aux": True, "aux_loss_alpha": 0.001, "ep_size": 1, "pretraining_tp": 1, "attention_bias": False},
}
_DEEPSEEK_V2 = {
    **_MLA,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}
_DEEPSEEK_V32 = {
    **_DEEPSEEK_V3,
    **{"index_topk": 12, "index_head_dim": 24, "index_n_heads": 3, "rope_parameters": {"rope_theta": 10000.0}},
    "num_nextn_predict_layers": 1,
}
_GLM4_MOE = {**_GROUPED_SIGMOID, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "head_dim": 24}
_GLM4_MOE_LITE = {
    **_MLA,
    **{name: value for name, value in _GROUPED_SIGMOID.items() if name != "first_k_dense_replace"},
    "n_shared_experts": 1,
}
_DOTS1 = {**_GROUPED_SIGMOID, "n_shared_experts": 2, "norm_topk_prob": True, "head_dim": 16}
_EXAONE_MOE = {
    **{"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "num_shared_experts": 2},
    "head_dim": 24,
}
_MIMO_V2 = {
    **{"num_attention_heads": 8, "head_dim": 24, "v_head_dim": 12, "sliding_window": 8},
    **{"n_routed_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32},
}
_MIMO_V2_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
_GPT_OSS = {
    **{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24, "sliding_window": 8},
    "swiglu_limit": 0.3,  # so small that it matters with these weights
}
_GPT_OSS_YARN = {"factor": 32.0, "beta_fast": 32.0, "truncate": False, "original_max_position_embeddings": 16}
_OLMOE = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
_HUNYUAN_MOE = {"num_experts": 4, "moe_topk": 2, "head_dim": 16}
_GRANITE_MOE = {
    **{"num_local_experts": 4, "num_experts_per_tok": 2},
    **{"embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 4.0},
}
_ERNIE_MOE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "head_dim": 16}
_LLAMA4 = {
    **{"num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 112},
    **{"attention_chunk_size": 8, "no_rope_layers": [1, 0, 1, 0], "floor_scale": 4, "attn_scale": 0.5},
}

_LFM2 = {
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    **{"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 20},
}
_LFM2_VARIANT = {
    **{"full_attn_idxs": [0, 2], "conv_bias": True, "conv_L_cache": 4, "norm_eps": 1e-3},
    **{"block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
}
_LFM2_MOE = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1},
    **{"layer_types": ["conv", "conv", "full_attention", "conv"], "routed_scaling_factor": 1.5},
}
_LFM2_MOE_VARIANT = {
    **{"num_dense_layers": 0, "use_expert_bias": False, "norm_topk_prob": False, "conv_bias": True},
    **{"layer_types": ["full_attention", "conv"] * 2, "tie_word_embeddings": True},
}
_MAMBA2 = {"state_size": 16, "num_heads": 16, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
_MAMBA2_VARIANT = {"tie_word_embeddings": True, "time_step_limit": (0.5, float("inf"))}
_BAMBA = {
    "attn_layer_indices": [1, 2],
    "mamba_n_heads": 16,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_FALCON_H1 = {
    **{"mamba_d_ssm": 128, "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 16},
    **{"mamba_chunk_size": 16, "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.8, "key_multiplier": 0.6},
    **{"ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.7, "ssm_multipliers": [0.8, 1.1, 1.4, 0.9, 1.6]},
    **{"mlp_multipliers": [0.9, 1.2], "embedding_multiplier": 5.0, "lm_head_multiplier": 1.5},
}
_FALCON_H1_NORM = {"mamba_rms_norm": True, "tie_word_embeddings": True, "time_step_limit": (0.5, float("inf"))}
_NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
    "head_dim": 24,
    "ssm_state_size": 16,
    "mamba_num_heads": 16,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 16,
    # Above many of the step sizes, so that the limit shows.
    "time_step_min": 0.5,
}
_NEMOTRON_3 = {
    **_NEMOTRON_H,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention", "mlp"],
    "time_step_min": 0.001,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    "layer_norm_epsilon": 1e-4,
}
TINY_MODELS = {
    model.name: model
    for model in (
        TinyModel("nemotron-h", "NemotronHForCausalLM", _NEMOTRON_H),
        TinyModel("nemotron-3", "NemotronHForCausalLM", _NEMOTRON_3),
        TinyModel("nemotron-3-latent", "NemotronHForCausalLM", {**_NEMOTRON_3, "moe_latent_size": 40}),
        TinyModel("mamba2", "Mamba2ForCausalLM", _MAMBA2),
        TinyModel("mamba2-tied-step-limit", "Mamba2ForCausalLM", {**_MAMBA2, **_MAMBA2_VARIANT}),
        TinyModel("bamba", "BambaForCausalLM", _BAMBA),
        TinyModel("lfm2", "Lfm2ForCausalLM", _LFM2),
        TinyModel("lfm2-tied-biases", "Lfm2ForCausalLM", _LFM2_VARIANT),
        TinyModel("lfm2-moe", "Lfm2MoeForCausalLM", _LFM2_MOE),
        TinyModel("lfm2-moe-tied-biases", "Lfm2MoeForCausalLM", {**_LFM2_MOE, **_LFM2_MOE_VARIANT}),
        TinyModel("falcon-h1", "FalconH1ForCausalLM", {**_FALCON_H1, "head_dim": 24}),
        TinyModel("falcon-h1-norm-before-gate", "FalconH1ForCausalLM", {**_FALCON_H1, **_FALCON_H1_NORM}),
        TinyModel(
            "falcon-h1-norm",
            "FalconH1ForCausalLM",
            {**_FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
        ),
        TinyModel("llama", _LLAMA),
        TinyModel("llama-tied", _LLAMA, {"tie_word_embeddings": True}),
        TinyModel("llama-attention-bias", _LLAMA, {"attention_bias": True}),
        TinyModel("llama-mlp-bias", _LLAMA, {"mlp_bias": True}),
        TinyModel("llama-all-biases", _LLAMA, {"attention_bias": True, "mlp_bias": True}),
        TinyModel("llama-head-dim", _LLAMA, {"head_dim": 24}),
        TinyModel("llama-mha", _LLAMA, {"num_key_value_heads": 4}),
        TinyModel("llama-odd-vocabulary", _LLAMA, {"vocab_size": 131}),
        TinyModel("llama-odd-vocabulary-tied", _LLAMA, {"vocab_size": 131, "tie_word_embeddings": True}),
        TinyModel("llama-gelu", _LLAMA, {"hidden_act": "gelu", "rms_norm_eps": 1e-5}),
        TinyModel("llama-linear-rope", _LLAMA, rope("linear", factor=4.0)),
        TinyModel("llama-dynamic-rope", _LLAMA, {**rope("dynamic", factor=2.0), "max_position_embeddings": 24}),
        TinyModel("llama-dynamic-rope-short", _LLAMA, {**rope("dynamic", factor=2.0), "max_position_embeddings": 64}),
        TinyModel("llama-yarn-rope", _LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
        TinyModel("llama-llama3-rope", _LLAMA, rope("llama3", **_LLAMA3)),
        TinyModel("llama-longrope-long", _LLAMA, rope("longrope", **_LONGROPE)),
        TinyModel("llama-longrope-short", _LLAMA, rope("longrope", **_LONGROPE), seq_length=24),
        TinyModel("qwen2", _QWEN2),
        TinyModel("qwen2-tied", _QWEN2, {"tie_word_embeddings": True}),
        TinyModel("mimo", _QWEN2, {"head_dim": 24}, config_json=_MIMO_JSON),
        TinyModel("qwen2-window-on-some-layers", _QWEN2, _WINDOW_ON_SOME),
        TinyModel("qwen2-yarn-rope", _QWEN2, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
        TinyModel("qwen3", _QWEN3, {"head_dim": 24}),
        TinyModel("qwen3-tied", _QWEN3, {"head_dim": 16, "tie_word_embeddings": True}),
        TinyModel("qwen3-attention-bias", _QWEN3, {"head_dim": 16, "attention_bias": True}),
        TinyModel("qwen3-window-on-some-layers", _QWEN3, {"head_dim": 16, **_WINDOW_ON_SOME}),
        TinyModel("qwen3-yarn-rope", _QWEN3, {"head_dim": 16, **rope("yarn", factor=2.0, attention_factor=1.5)}),
        TinyModel("qwen3-moe", "Qwen3MoeForCausalLM", _MOE),
        TinyModel("qwen3-moe-softmax-first", "Qwen3MoeForCausalLM", {**_MOE, "norm_topk_prob": False}),
        TinyModel("qwen3-moe-dense-layers", "Qwen3MoeForCausalLM", {**_MOE, "mlp_only_layers": [0, 2]}),
        TinyModel(
            "qwen3-next",
            "Qwen3NextForCausalLM",
            {**_QWEN2_MOE, "norm_topk_prob": True, **_DELTA_NET},
            tolerance=_DELTA_NET_TOLERANCE,
        ),
        TinyModel(
            "qwen3-next-dense-layers",
            "Qwen3NextForCausalLM",
            {**_QWEN2_MOE, **_DELTA_NET, "mlp_only_layers": [0], "attention_bias": True},
            tolerance=_DELTA_NET_TOLERANCE,
        ),
        TinyModel("qwen3.5", "Qwen3_5ForCausalLM", {**_DELTA_NET, **_QWEN_MTP}, tolerance=_DELTA_NET_TOLERANCE),
        TinyModel("qwen3.5-tied", "Qwen3_5ForCausalLM", {**_DELTA_NET, **_TIED}, tolerance=_DELTA_NET_TOLERANCE),
        TinyModel(
            "qwen3.5-linear-last",
            "Qwen3_5ForCausalLM",
            {**_DELTA_NET, "layer_types": ["full_attention", "linear_attention"] * 2},
            tolerance=_DELTA_NET_TOLERANCE,
        ),
        TinyModel(
            "qwen3.5-moe",
            "Qwen3_5MoeForCausalLM",
            {**_QWEN2_MOE, **_DELTA_NET, **_QWEN_MTP},
            tolerance=_DELTA_NET_TOLERANCE,
        ),
        TinyModel("qwen2-moe", "Qwen2MoeForCausalLM", _QWEN2_MOE),
        TinyModel(
            "qwen2-moe-no-bias", "Qwen2MoeForCausalLM", {**_QWEN2_MOE, "norm_topk_prob": True, "qkv_bias": False}
        ),
        TinyModel(
            "qwen2-moe-dense-layers-and-window",
            "Qwen2MoeForCausalLM",
            {**_QWEN2_MOE, "mlp_only_layers": [1], **_WINDOW_ON_SOME},
        ),
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
        TinyModel("deepseek-v2", "DeepseekV2ForCausalLM", _DEEPSEEK_V2),
        TinyModel(
            "deepseek-v2-groups",
            "DeepseekV2ForCausalLM",
            {
                **_DEEPSEEK_V2,
                **{"num_experts_per_tok": 6, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 3},
                **rope("yarn", **{**_DEEPSEEK_YARN, "mscale": 0.7, "mscale_all_dim": 0.7}),
            },
        ),
        TinyModel("deepseek-v2-lite", "DeepseekV2ForCausalLM", {**_DEEPSEEK_V2, "q_lora_rank": None}),
        TinyModel("deepseek-v3.2", "DeepseekV32ForCausalLM", {**_DEEPSEEK_V32, **rope("yarn", **_DEEPSEEK_YARN)}),
        TinyModel("deepseek-v3.2-all-keys", "DeepseekV32ForCausalLM", {**_DEEPSEEK_V32, "index_topk": 64}),
        TinyModel("glm-moe-dsa", "GlmMoeDsaForCausalLM", {**_DEEPSEEK_V32, "n_group": 1, "topk_group": 1}),
        TinyModel(
            "glm-moe-dsa-shared-indices",
            "GlmMoeDsaForCausalLM",
            {**_DEEPSEEK_V32, "indexer_types": ["full", "shared"] * 2, "rms_norm_eps": 1e-5},
            config_json={"index_share_for_mtp_iteration": True, "moe_router_dtype": "float32"},
        ),
        TinyModel("glm4-moe", "Glm4MoeForCausalLM", {**_GLM4_MOE, "use_qk_norm": True}),
        TinyModel("glm4-moe-attention-bias", "Glm4MoeForCausalLM", {**_GLM4_MOE, "attention_bias": True}),
        TinyModel("glm4-moe-lite", "Glm4MoeLiteForCausalLM", _GLM4_MOE_LITE),
        TinyModel(
            "glm4-moe-lite-layer-types",
            "Glm4MoeLiteForCausalLM",
            {**_GLM4_MOE_LITE, "mlp_layer_types": ["sparse", "dense", "dense", "sparse"]},
        ),
        TinyModel("dots1", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": None}),
        TinyModel(
            "dots1-attention-bias", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": None, "attention_bias": True}
        ),
        TinyModel("dots1-window", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": 8, "max_window_layers": 2}),
        TinyModel("exaone-moe", "ExaoneMoeForCausalLM", {**_EXAONE_MOE, "sliding_window": 8}),
        TinyModel("mimo-v2-flash", "MiMoV2FlashForCausalLM", _MIMO_V2),
        TinyModel(
            "mimo-v2-flash-other-layers",
            "MiMoV2FlashForCausalLM",
            {
                **{**_MIMO_V2, "v_head_dim": 32, "attention_value_scale": 1.7, "rope_parameters": _MIMO_V2_ROPE},
                **{"layer_types": ["sliding_attention", "full_attention"] * 2, "n_group": 4, "topk_group": 2},
                **{"mlp_layer_types": ["sparse", "sparse", "dense", "sparse"], "routed_scaling_factor": 2.5},
                **_TIED,
                **_BIAS,
            },
        ),
        TinyModel("gpt-oss", "GptOssForCausalLM", {**_GPT_OSS, **rope("yarn", **_GPT_OSS_YARN)}, splits_experts=False),
        TinyModel("gpt-oss-default-rope", "GptOssForCausalLM", {**_GPT_OSS, **rope("default")}, splits_experts=False),
        TinyModel("olmoe", "OlmoeForCausalLM", _OLMOE),
        TinyModel("olmoe-softmax-last", "OlmoeForCausalLM", {**_OLMOE, "norm_topk_prob": True, "attention_bias": True}),
        TinyModel("minimax-m2", "MiniMaxM2ForCausalLM", {**_MIXTRAL, **rope("default", partial_rotary_factor=0.5)}),
        TinyModel("hunyuan-moe", "HunYuanMoEV1ForCausalLM", _HUNYUAN_MOE),
        TinyModel(
            "hunyuan-moe-alpha",
            "HunYuanMoEV1ForCausalLM",
            {**_HUNYUAN_MOE, "moe_topk": 1, "attention_bias": True, **rope("dynamic", factor=1.0, alpha=50.0)},
        ),
        TinyModel("granite-moe", "GraniteMoeForCausalLM", _GRANITE_MOE),
        TinyModel("granite-moe-attention-bias", "GraniteMoeForCausalLM", {**_GRANITE_MOE, "attention_bias": True}),
        TinyModel("ernie-4.5-moe", "Ernie4_5_MoeForCausalLM", {**_ERNIE_MOE, "moe_num_shared_experts": 2}),
        TinyModel(
            "ernie-4.5-moe-some-layers",
            "Ernie4_5_MoeForCausalLM",
            {
                **_ERNIE_MOE,
                **{"moe_num_shared_experts": 0, "moe_layer_interval": 2, "tie_word_embeddings": True},
            },
        ),
        TinyModel("llama4", "Llama4ForCausalLM", {**_LLAMA4, **rope("llama3", **_LLAMA3)}),
        TinyModel(
            "llama4-dense-layers",
            "Llama4ForCausalLM",
            {**_LLAMA4, "moe_layers": [1, 3], "use_qk_norm": False, "attention_bias": True},
        ),
        TinyModel("llama4-no-temperature", "Llama4ForCausalLM", {**_LLAMA4, "attn_temperature_tuning": False}),
        TinyModel("mixtral", "MixtralForCausalLM", _MIXTRAL),
        TinyModel("mixtral-window", "MixtralForCausalLM", {**_MIXTRAL, "sliding_window": 8, "head_dim": 24}),
        TinyModel("mistral", _MISTRAL, {"sliding_window": None}),
        TinyModel("mistral-window", _MISTRAL, {"sliding_window": 8}),
        TinyModel("mistral-head-dim", _MISTRAL, {"sliding_window": None, "head_dim": 32}),
        TinyModel("ministral3", "Ministral3ForCausalLM", {"head_dim": 16, **rope("yarn", **_MINISTRAL3)}),
        TinyModel("starcoder2", "Starcoder2ForCausalLM"),
        TinyModel(
            "starcoder2-tied-window", "Starcoder2ForCausalLM", {"tie_word_embeddings": True, "sliding_window": 8}
        ),
        TinyModel("starcoder2-no-bias", "Starcoder2ForCausalLM", {"use_bias": False, "hidden_act": "gelu"}),
        TinyModel("arcee", "ArceeForCausalLM"),
        TinyModel("arcee-biases", "ArceeForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        TinyModel("smollm3", "SmolLM3ForCausalLM"),
        TinyModel("smollm3-tied-window", "SmolLM3ForCausalLM", {"tie_word_embeddings": True, **_SMOLLM3_WINDOW}),
        TinyModel("seed-oss", "SeedOssForCausalLM", {"head_dim": 24}),
        TinyModel("seed-oss-output-bias", "SeedOssForCausalLM", {"head_dim": 16, "attention_out_bias": True}),
        TinyModel("seed-oss-mlp-bias", "SeedOssForCausalLM", {"attention_bias": False, "mlp_bias": True}),
        TinyModel("ernie-4.5", "Ernie4_5ForCausalLM", {"head_dim": 24}),
        TinyModel("ernie-4.5-tied-bias", "Ernie4_5ForCausalLM", {"tie_word_embeddings": True, "use_bias": True}),
        TinyModel("phi3", "Phi3ForCausalLM"),
        TinyModel("phi3-window", "Phi3ForCausalLM", {"sliding_window": 8, "num_key_value_heads": 4}),
        TinyModel("phi3-partial-longrope-long", "Phi3ForCausalLM", _PHI3_LONGROPE),
        TinyModel("phi3-partial-longrope-short", "Phi3ForCausalLM", _PHI3_LONGROPE, seq_length=24),
        TinyModel("gemma", "GemmaForCausalLM", {"head_dim": 24}),
        TinyModel("gemma-tied-bias", "GemmaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
        TinyModel("gemma2", "Gemma2ForCausalLM", _GEMMA2),
        TinyModel("gemma2-tied-bias", "Gemma2ForCausalLM", {**_GEMMA2, "tie_word_embeddings": True, **_BIAS}),
        TinyModel("gemma2-no-caps", "Gemma2ForCausalLM", {**_GEMMA2, **_NO_CAPS}),
        TinyModel("gemma3", "Gemma3ForCausalLM", _GEMMA3),
        TinyModel("gemma3-tied-linear-rope", "Gemma3ForCausalLM", {**_GEMMA3, **_GEMMA3_LINEAR}),
        TinyModel("gemma4", "Gemma4ForCausalLM", _GEMMA4, tolerance=_GEMMA4_TOLERANCE),
        TinyModel("gemma4-keys-are-values", "Gemma4ForCausalLM", {**_GEMMA4, **_BIAS, **_TIED, **_K_EQ_V}),
        TinyModel(
            "gemma4-moe",
            "Gemma4ForCausalLM",
            {**_GEMMA4, **_TIED, **_K_EQ_V, **_GEMMA4_MOE},
            tolerance=_GEMMA4_TOLERANCE,
        ),
        TinyModel(
            "gemma4-per-layer", "Gemma4ForCausalLM", {**_GEMMA4, **_GEMMA4_PER_LAYER}, tolerance=_GEMMA4_TOLERANCE
        ),
        TinyModel("gemma4-shared", "Gemma4ForCausalLM", {**_GEMMA4, **_GEMMA4_SHARED}, tolerance=_GEMMA4_TOLERANCE),
        TinyModel(
            "gemma4-shared-wide",
            "Gemma4ForCausalLM",
            {**_GEMMA4, **_GEMMA4_WIDE, **_TIED},
            tolerance=_GEMMA4_TOLERANCE,
        ),
        TinyModel(
            "gemma4-e2b",
            "Gemma4ForCausalLM",
            {**_GEMMA4, **_TIED, **_GEMMA4_WIDE, **_GEMMA4_PER_LAYER},
            tolerance=_GEMMA4_TOLERANCE,
        ),
        TinyModel(
            "gemma4-everything",
            "Gemma4ForCausalLM",
            {**_GEMMA4, **_BIAS, **_K_EQ_V, **_GEMMA4_MOE, "top_k_experts": 1, **_GEMMA4_WIDE, **_GEMMA4_PER_LAYER},
            tolerance=_GEMMA4_TOLERANCE,
        ),
        TinyModel("glm4", "Glm4ForCausalLM", {"head_dim": 16}),
        TinyModel("glm4-tied-no-bias", "Glm4ForCausalLM", {"tie_word_embeddings": True, "attention_bias": False}),
        TinyModel("olmo2", "Olmo2ForCausalLM"),
        TinyModel("olmo2-tied-bias", "Olmo2ForCausalLM", {"tie_word_embeddings": True, **_BIAS}),
        TinyModel("olmo3", "Olmo3ForCausalLM", {"sliding_window": 8}),
        TinyModel("olmo3-yarn-rope", "Olmo3ForCausalLM", {"sliding_window": 8, **_OLMO3_YARN}),
        TinyModel("granite", "GraniteForCausalLM", _GRANITE),
        TinyModel("granite-tied-biases", "GraniteForCausalLM", {**_GRANITE, **_BIAS, "mlp_bias": True, **_TIED}),
        TinyModel("exaone4", "Exaone4ForCausalLM", {"sliding_window": 8}),
        TinyModel("exaone4-tied-no-window", "Exaone4ForCausalLM", {"sliding_window": None, **_ALL_FULL, **_TIED}),
        TinyModel("hunyuan-dense", "HunYuanDenseV1ForCausalLM", {"head_dim": 24}),
        TinyModel("hunyuan-dense-alpha-rope", "HunYuanDenseV1ForCausalLM", {"head_dim": 16, **_ALPHA_ROPE}),
        TinyModel("hunyuan-dense-tied-bias", "HunYuanDenseV1ForCausalLM", {"head_dim": 16, **_TIED, **_BIAS}),
        # Norm weights are 1 + w with w around 1, so that logits grow to 6: a change of all weights in their last bit
        # moves those of transformers by 1e-5.
        TinyModel("nemotron", "NemotronForCausalLM", {"head_dim": 24}, tolerance=2e-5),
        TinyModel("nemotron-tied-biases", "NemotronForCausalLM", {**_TIED, **_BIAS, "mlp_bias": True}, tolerance=2e-5),
        TinyModel("apertus", "ApertusForCausalLM"),
        TinyModel("apertus-tied-bias", "ApertusForCausalLM", {**_TIED, **_BIAS}),
        TinyModel("phi", "PhiForCausalLM"),
        TinyModel("phi-tied-qk-norm", "PhiForCausalLM", {**_TIED, "qk_layernorm": True}),
        TinyModel("phi-odd-vocabulary", "PhiForCausalLM", {"vocab_size": 131}),
        TinyModel("cohere2", "Cohere2ForCausalLM", {"sliding_window": 8, "logit_scale": 0.7}),
        TinyModel(
            "cohere2-tied-bias", "Cohere2ForCausalLM", {"sliding_window": 8, "logit_scale": 0.7, **_TIED, **_BIAS}
        ),
        TinyModel("stablelm", "StableLmForCausalLM"),
        TinyModel("stablelm-tied-parallel", "StableLmForCausalLM", {**_TIED, "use_parallel_residual": True}),
        TinyModel("stablelm-head-norms", "StableLmForCausalLM", {"use_qkv_bias": True, "qk_layernorm": True}),
    )
}
