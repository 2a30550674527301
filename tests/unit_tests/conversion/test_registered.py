"""What is said of an architecture that has no bridge."""

import pytest
from transformers import LlamaConfig

from megatron.bridge.errors import UnsupportedModelError
from megatron.bridge.models.conversion.registered import find_bridge, nearest_names, registered_bridges


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("Qwen4ForCausalLM", ["Qwen3ForCausalLM", "Qwen2ForCausalLM"]),
        ("LlamaForSequenceClassification", ["LlamaForCausalLM"]),
        ("MistralModel", ["MistralForCausalLM", "MixtralForCausalLM"]),
        ("OPTForCausalLM", []),
    ],
)
def test_nearest_names(architecture: str, nearest: list[str]) -> None:
    found = nearest_names([architecture])
    assert found[: len(nearest)] == nearest and len(found) <= 3
    assert nearest or not found


@pytest.mark.parametrize(
    ("architecture", "said"),
    [("Qwen4ForCausalLM", "similar name: Qwen3ForCausalLM"), ("OPTForCausalLM", "No supported one has a similar name")],
)
def test_an_unknown_architecture(architecture: str, said: str) -> None:
    config = LlamaConfig(architectures=[architecture])
    config.name_or_path = "some model"
    with pytest.raises(UnsupportedModelError) as error:
        find_bridge(config)
    message = str(error.value)
    assert message.startswith(f"LlamaConfig of some model: no bridge for architecture {architecture}. ")
    assert said in message and "`megatron-bridge inspect 'some model'`" in message
    assert sum(name in message for name in registered_bridges()) <= 3
