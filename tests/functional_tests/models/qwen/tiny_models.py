"""Tiny models of Qwen2 to Qwen3.5."""

from tests.tiny_model import TIED, TinyModel, rope

_QWEN2 = "Qwen2ForCausalLM"
_QWEN3 = "Qwen3ForCausalLM"
_WINDOW_ON_SOME = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
_MOE = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
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

QWEN2_MODELS = (
    TinyModel("qwen2", _QWEN2),
    TinyModel("qwen2-tied", _QWEN2, {"tie_word_embeddings": True}),
    TinyModel("qwen2-window-on-some-layers", _QWEN2, _WINDOW_ON_SOME),
    TinyModel("qwen2-yarn-rope", _QWEN2, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
)

QWEN3_MODELS = (
    TinyModel("qwen3", _QWEN3, {"head_dim": 24}),
    TinyModel("qwen3-tied", _QWEN3, {"head_dim": 16, "tie_word_embeddings": True}),
    TinyModel("qwen3-attention-bias", _QWEN3, {"head_dim": 16, "attention_bias": True}),
    TinyModel("qwen3-window-on-some-layers", _QWEN3, {"head_dim": 16, **_WINDOW_ON_SOME}),
    TinyModel("qwen3-yarn-rope", _QWEN3, {"head_dim": 16, **rope("yarn", factor=2.0, attention_factor=1.5)}),
)

QWEN3_MOE_MODELS = (
    TinyModel("qwen3-moe", "Qwen3MoeForCausalLM", _MOE),
    TinyModel("qwen3-moe-softmax-first", "Qwen3MoeForCausalLM", {**_MOE, "norm_topk_prob": False}),
    TinyModel("qwen3-moe-dense-layers", "Qwen3MoeForCausalLM", {**_MOE, "mlp_only_layers": [0, 2]}),
)

QWEN3_NEXT_MODELS = (
    TinyModel("qwen3-next", "Qwen3NextForCausalLM", {**_QWEN2_MOE, "norm_topk_prob": True, **_DELTA_NET}),
    TinyModel(
        "qwen3-next-dense-layers",
        "Qwen3NextForCausalLM",
        {**_QWEN2_MOE, **_DELTA_NET, "mlp_only_layers": [0], "attention_bias": True},
    ),
)

QWEN3_5_MODELS = (
    TinyModel("qwen3.5", "Qwen3_5ForCausalLM", {**_DELTA_NET, **_QWEN_MTP}),
    TinyModel("qwen3.5-tied", "Qwen3_5ForCausalLM", {**_DELTA_NET, **TIED}),
    TinyModel(
        "qwen3.5-linear-last",
        "Qwen3_5ForCausalLM",
        {**_DELTA_NET, "layer_types": ["full_attention", "linear_attention"] * 2},
    ),
    TinyModel("qwen3.5-moe", "Qwen3_5MoeForCausalLM", {**_QWEN2_MOE, **_DELTA_NET, **_QWEN_MTP}),
)

QWEN2_MOE_MODELS = (
    TinyModel("qwen2-moe", "Qwen2MoeForCausalLM", _QWEN2_MOE),
    TinyModel("qwen2-moe-no-bias", "Qwen2MoeForCausalLM", {**_QWEN2_MOE, "norm_topk_prob": True, "qkv_bias": False}),
    TinyModel(
        "qwen2-moe-dense-layers-and-window",
        "Qwen2MoeForCausalLM",
        {**_QWEN2_MOE, "mlp_only_layers": [1], **_WINDOW_ON_SOME},
    ),
)
TINY_MODELS = (*QWEN2_MODELS, *QWEN3_MODELS, *QWEN3_MOE_MODELS, *QWEN3_NEXT_MODELS, *QWEN3_5_MODELS, *QWEN2_MOE_MODELS)
