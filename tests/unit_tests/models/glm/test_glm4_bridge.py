"""GLM-4-0414 (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.glm.tiny_models import GLM4_MODELS


class TestGlm4Bridge(BridgeSuite):
    models = GLM4_MODELS


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "num_hidden_layers": 2,
            "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "attention_bias": True,
        },
        {"rotary_percent": 0.5, "add_qkv_bias": True, "attention_output_bias": None},
    )  # fmt: skip
