"""Phi-3, Phi-3.5 and Phi-4 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.phi.tiny_models import PHI3_MODELS


class TestPhi3Bridge(BridgeSuite):
    models = PHI3_MODELS


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_hidden_layers": 2, "pad_token_id": 0,
            "num_key_value_heads": 2, "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "full_attn_mod": 1,
            "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 6, "short_factor": [1.0] * 6},
            "max_position_embeddings": 256, "original_max_position_embeddings": 64, "sliding_window": None,
        },
        {"rotary_percent": 0.75, "window_size": None},
    )  # fmt: skip
