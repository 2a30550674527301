"""Tiny models of MiMo and MiMo-V2-Flash."""

from tests.tiny_model import BIAS, TIED, TinyModel

_MIMO_JSON = {
    "model_type": "mimo", "architectures": ["MiMoForCausalLM"], "auto_map": {"AutoConfig": "c.MiMoConfig"},
    "attention_bias": True, "use_mrope": False, "num_nextn_predict_layers": 1,
}  # fmt: skip
_MIMO_V2 = {
    "num_attention_heads": 8, "head_dim": 24, "v_head_dim": 12, "sliding_window": 8,
    "n_routed_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
}  # fmt: skip
_MIMO_V2_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}

MIMO_MODELS = (TinyModel("mimo", "Qwen2ForCausalLM", {"head_dim": 24}, config_json=_MIMO_JSON),)

MIMO_V2_FLASH_MODELS = (
    TinyModel("mimo-v2-flash", "MiMoV2FlashForCausalLM", _MIMO_V2),
    TinyModel(
        "mimo-v2-flash-other-layers",
        "MiMoV2FlashForCausalLM",
        {
            **{**_MIMO_V2, "v_head_dim": 32, "attention_value_scale": 1.7, "rope_parameters": _MIMO_V2_ROPE},
            "layer_types": ["sliding_attention", "full_attention"] * 2, "n_group": 4, "topk_group": 2,
            "mlp_layer_types": ["sparse", "sparse", "dense", "sparse"], "routed_scaling_factor": 2.5,
            **TIED,
            **BIAS,
        },
    ),
)  # fmt: skip
TINY_MODELS = (*MIMO_MODELS, *MIMO_V2_FLASH_MODELS)
