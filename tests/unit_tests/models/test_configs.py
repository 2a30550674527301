"""Configs that families refuse, and configs in the form in which older versions of transformers wrote them."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron.bridge import AutoBridge
from megatron.bridge.errors import UnsupportedConfigError
from tests.tiny_models import TINY_MODELS

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("apertus", {"hidden_act": "relu2"}, "hidden_act: expected 'xielu', found 'relu2'"),
    ("exaone4", {"layer_types": ["full_attention"] * 4}, "leaves every layer without rope"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected None or False"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"hidden_activation": "mish"}, "hidden_activation: activation 'mish' is not supported"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected None, found 50.0"),
    ("gemma4", {"num_kv_shared_layers": 3}, "have no earlier layer of their kind"),
    ("gemma4", {"enable_moe_block": True, "num_experts": 4}, "needs top_k_experts, moe_intermediate_size"),
    ("gemma4", {"per_layer_config": {1: {"head_dim": 32}}}, "for all layers of a kind"),
    ("ministral3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "must have llama_4_scaling_beta"),
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
