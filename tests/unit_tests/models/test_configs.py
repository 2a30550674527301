"""Configs that families refuse, and configs in the form in which older versions of transformers wrote them."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron.bridge import AutoBridge
from megatron.bridge.errors import UnsupportedConfigError
from tests.tiny_models import TINY_MODELS

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_TWO_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("apertus", {"hidden_act": "relu2"}, "hidden_act: expected 'xielu', found 'relu2'"),
    ("exaone4", {"layer_types": ["full_attention"] * 4}, "leaves every layer without rope"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False, found True"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"hidden_activation": "mish"}, "hidden_activation: activation 'mish' is not supported"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected None, found 50.0"),
    ("gemma4", {"num_kv_shared_layers": 3}, "have no earlier layer of their kind"),
    ("gemma4", {"enable_moe_block": True, "num_experts": 4}, "needs top_k_experts, moe_intermediate_size"),
    ("gemma4", {"per_layer_config": {1: {"head_dim": 32}}}, "for all layers of a kind"),
    ("ministral3", {"rope_parameters": _ROPE}, "must have llama_4_scaling_beta"),
    ("mimo-v2-flash", {"swa_num_key_value_heads": 2}, "swa_num_key_value_heads: expected 4, found 2"),
    ("mimo-v2-flash", {"swa_rope_theta": 1e5}, "swa_rope_theta: expected 10000.0, found 100000.0"),
    ("mimo-v2-flash", {"hybrid_layer_pattern": [1, 0, 0, 1]}, "hybrid_layer_pattern"),
    ("mimo-v2-flash", {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias"),
    ("mimo-v2-flash", {"rope_parameters": _TWO_ROPES}, "must state partial_rotary_factor"),
    ("lfm2", {"layer_types": ["conv", "sliding_attention"] * 2}, r"\['sliding_attention'\] are not supported"),
    ("lfm2", {"block_use_swiglu": False}, "block_use_swiglu: expected True, found False"),
    ("stablelm", {"hidden_dropout": 0.1}, "hidden_dropout: expected 0, found 0.1"),
    ("starcoder2", {"some_new_switch": True}, "some_new_switch = True: unknown to this family"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[f"{n}-{next(iter(c))}" for n, c, _ in REFUSED])
def test_refused(name: str, changes: dict[str, Any], message: str) -> None:
    tiny = TINY_MODELS[name]
    hf_config = type(tiny.hf_config())(**{**tiny.hf_config().to_dict(), **changes})
    with pytest.raises(UnsupportedConfigError, match=message):
        AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 128, "head_dim": 16}
# The fields of a file, and what the provider must have.
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 6,
            "num_key_value_heads": 1, "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
            "sliding_window": 512, "sliding_window_pattern": 6, "cache_implementation": "hybrid",
        },
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
            "window_rope_parameters": {"rope_type": "default", "rope_theta": 10000},
            "window_size": (511, 0),
            "window_attn_skip_freq": [1, 1, 1, 1, 1, 0],
        },
    ),
    "mimo-v2-flash": (  # as published
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
    ),
    "llama": (  # made from a GGUF file
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "unk_token_id": 0,
            "num_key_value_heads": 2, "rope_theta": 10000.0,
        },
        {"num_query_groups": 2, "rotary_base": 10000.0},
    ),
    "cohere2": (
        {
            "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "num_hidden_layers": 4,
            "num_key_value_heads": 2, "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj", "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 8,
            "sliding_window_pattern": 4, "use_parallel_block": True, "logit_scale": 0.25,
        },
        {"window_attn_skip_freq": [1, 1, 1, 0], "no_rope_freq": [0, 0, 0, 1], "logits_multiplier": 0.25},
    ),
    "phi3": (
        {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_hidden_layers": 2, "pad_token_id": 0,
            "num_key_value_heads": 2, "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "full_attn_mod": 1,
            "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 6, "short_factor": [1.0] * 6},
            "max_position_embeddings": 256, "original_max_position_embeddings": 64, "sliding_window": None,
        },
        {"rotary_percent": 0.75, "window_size": None},
    ),
    "glm4": (
        {
            "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "num_hidden_layers": 2,
            "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "attention_bias": True,
        },
        {"rotary_percent": 0.5, "add_qkv_bias": True, "attention_output_bias": None},
    ),
    "hunyuan": (
        {
            "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "num_hidden_layers": 2,
            "num_key_value_heads": 2, "rope_theta": 10000.0, "use_qk_norm": True, "use_cla": False,
            "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        },
        {"qk_layernorm_scope": "head_after_rope"},
    ),
    "lfm2": (
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
    ),
    "phi": (
        {
            "architectures": ["PhiForCausalLM"], "model_type": "phi", "num_hidden_layers": 2, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.4, "resid_pdrop": 0.1, "hidden_act": "gelu_new",
        },
        {"rotary_percent": 0.4, "hidden_dropout": 0.1, "embedding_dropout": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_older_files(content: dict[str, Any], expected: dict[str, Any]) -> None:
    hf_config = CONFIG_MAPPING[content["model_type"]].from_dict({**SIZES, **content})
    provider = AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)
    provider.finalize()
    for name, value in expected.items():
        assert getattr(provider, name) == value, name
