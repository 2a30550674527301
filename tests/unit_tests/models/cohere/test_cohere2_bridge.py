"""Command R7B and Command A (Cohere 2): configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.cohere.tiny_models import COHERE2_MODELS


class TestCohere2Bridge(BridgeSuite):
    models = COHERE2_MODELS


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "num_hidden_layers": 4,
            "num_key_value_heads": 2, "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj", "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 8,
            "sliding_window_pattern": 4, "use_parallel_block": True, "logit_scale": 0.25,
        },
        {"window_attn_skip_freq": [1, 1, 1, 0], "no_rope_freq": [0, 0, 0, 1], "logits_multiplier": 0.25},
    )  # fmt: skip
