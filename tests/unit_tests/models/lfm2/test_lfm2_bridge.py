"""LFM2, dense and with experts: configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.lfm2.tiny_models import LFM2_MODELS


class TestLfm2Bridge(BridgeSuite):
    models = LFM2_MODELS
    refused = [
        ("lfm2", {"layer_types": ["conv", "sliding_attention"] * 2}, r"\['sliding_attention'\] are not supported"),
        ("lfm2", {"block_use_swiglu": False}, "block_use_swiglu: expected True, found False"),
    ]


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "num_hidden_layers": 3, "num_heads": 4,
            "num_key_value_heads": 2, "block_auto_adjust_ff_dim": True, "block_dim": 64, "block_ff_dim": 120,
            "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 16, "rope_theta": 1e6,
            "block_norm_eps": 1e-05, "block_out_init_scale": 1.0, "block_use_swiglu": True, "conv_L_cache": 3,
            "block_use_xavier_init": True, "conv_bias": False, "conv_dim": 64, "conv_dim_out": 64, "norm_eps": 1e-05,
            "conv_use_xavier_init": True, "full_attn_idxs": [2], "use_pos_enc": True, "tie_embedding": False,
        },
        {
            "linear_attention_freq": [1, 1, 0], "ffn_hidden_size": 80, "rotary_base": 1e6, "layernorm_epsilon": 1e-5,
            "share_embeddings_and_output_weights": False,
        },
    )  # fmt: skip
