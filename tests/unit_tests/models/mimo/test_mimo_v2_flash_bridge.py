"""MiMo-V2-Flash: configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.mimo.tiny_models import MIMO_V2_FLASH_MODELS

_ROPE = {"rope_type": "default", "rope_theta": 1e4}


class TestMiMoV2FlashBridge(BridgeSuite):
    models = MIMO_V2_FLASH_MODELS
    refused = [
        ("mimo-v2-flash", {"swa_num_key_value_heads": 2}, "swa_num_key_value_heads: expected 4, found 2"),
        ("mimo-v2-flash", {"swa_rope_theta": 1e5}, "swa_rope_theta: expected 10000.0, found 100000.0"),
        ("mimo-v2-flash", {"hybrid_layer_pattern": [1, 0, 0, 1]}, "hybrid_layer_pattern"),
        ("mimo-v2-flash", {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias"),
        (
            "mimo-v2-flash",
            {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
            "must state partial_rotary_factor",
        ),
    ]


def test_the_published_file() -> None:
    check_older_file(
        {
            "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash", "num_hidden_layers": 6,
            "num_attention_heads": 8, "num_key_value_heads": 2, "v_head_dim": 12, "head_dim": 24,
            "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "sliding_window": 128, "sliding_window_size": 128, "attention_chunk_size": 128, "hybrid_block_size": None,
            "swa_num_attention_heads": 8, "swa_num_key_value_heads": 4, "swa_head_dim": 24, "swa_v_head_dim": 12,
            "rope_theta": 5000000, "swa_rope_theta": 10000, "partial_rotary_factor": 0.334,
            "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False, "layernorm_epsilon": 1e-5,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_shared_experts": None, "n_group": 1,
            "routed_scaling_factor": None, "attention_value_scale": 0.707, "n_routed_experts": 4,
        },
        {
            "window_size": (128, 0),
            "window_attn_skip_freq": [0, 1, 1, 1, 1, 0],
            "window_attention": {"num_query_groups": 4, "softmax_type": "learnable"},
            "rotary_base": 5000000.0,
            "rotary_percent": 0.334,
            "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "value_multiplier": 0.707,
        },
    )  # fmt: skip
