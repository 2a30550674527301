"""Gemma 3 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.gemma.tiny_models import GEMMA3_MODELS


class TestGemma3Bridge(BridgeSuite):
    models = GEMMA3_MODELS
    refused = [("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected None, found 50.0")]


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 6,
            "num_key_value_heads": 1, "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
            "sliding_window": 512, "sliding_window_pattern": 6, "cache_implementation": "hybrid",
        },
        {
            "rotary_base": 1000000,
            "rope_parameters": {"rope_type": "default"},
            "window_rope_parameters": {"rope_type": "default", "rope_theta": 10000},
            "window_size": (511, 0),
            "window_attn_skip_freq": [1, 1, 1, 1, 1, 0],
        },
    )  # fmt: skip
