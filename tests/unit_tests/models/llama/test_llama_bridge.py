"""Llama: configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.llama.tiny_models import LLAMA_MODELS


class TestLlamaBridge(BridgeSuite):
    models = LLAMA_MODELS


def test_a_file_made_from_gguf() -> None:
    check_older_file(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "unk_token_id": 0,
            "num_key_value_heads": 2, "rope_theta": 10000.0,
        },
        {"num_query_groups": 2, "rotary_base": 10000.0},
    )  # fmt: skip
