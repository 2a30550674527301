"""Whose error it is when the model of a config cannot be built: the config's, or this package's own."""

from typing import Any

import pytest

from megatron.bridge import AutoBridge
from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models import gpt_provider
from megatron.bridge.models.conversion.meta_model import meta_placement
from megatron.bridge.models.model_provider import Provider
from megatron.bridge.models.placement import read_placement
from megatron.bridge.runtime import norm
from tests.tiny_models import TINY_MODELS


def provider_of(name: str, **values: Any) -> Provider:
    provider = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config()).to_megatron_provider(load_weights=False)
    for field, value in values.items():
        setattr(provider, field, value)
    return provider


def test_a_bug_of_our_own_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(gpt_provider, "apply_rope_parameters", broken)
    with pytest.raises(TypeError, match=r"^a bug$"):
        meta_placement(provider_of("llama"), "the model")


def test_a_bug_in_a_module_that_megatron_core_builds_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "torch", None)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'full'"):
        meta_placement(provider_of("llama"), "the model")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("softmax_type", "nothing", "ValueError: Softmax type not supported"),
        ("num_query_groups", 0, "ZeroDivisionError"),
        ("attention_dropout", 3.0, "ValueError: dropout probability has to be between 0 and 1"),
    ],
)
def test_what_megatron_core_refuses_is_a_named_error(field: str, value: Any, reason: str) -> None:
    """Whatever stands below its frames."""
    with pytest.raises(UnsupportedConfigError, match=f"^the model: megatron-core cannot build .*: {reason}"):
        meta_placement(provider_of("llama", **{field: value}), "the model")


def test_what_transformers_refuses_is_a_named_error() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": "4", "original_max_position_embeddings": 32}
    with pytest.raises(UnsupportedConfigError, match=r"^the model: transformers cannot build .*: TypeError"):
        meta_placement(provider_of("llama", rope_parameters=rope), "the model")


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [
        ("llama", "num_attention_heads", "64", "num_attention_heads: expected int, found '64'"),
        ("llama", "hidden_size", True, "hidden_size: expected int, found True"),
        ("llama", "vocab_size", None, "vocab_size: expected int, found None"),
        ("llama", "make_vocab_size_divisible_by", 0, "make_vocab_size_divisible_by: expected a number from 1"),
        ("llama", "num_query_groups", 10**40, r"num_query_groups: expected a number from 0, below 2\^63"),
        ("llama", "rope_parameters", 3, r"rope_parameters: expected RopeParameters \| None, found 3"),
        ("llama", "window_attention", {"num_query_groups": "2"}, "window_attention: expected .*WindowAttention"),
        ("gemma3", "window_rope_parameters", {}, "window_rope_parameters: expected a rope_theta"),
        ("llama4", "no_rope_freq", [1], "no_rope_freq: expected one number for each of 4 layers"),
        ("gemma4-shared", "num_kv_shared_layers", None, "num_kv_shared_layers: expected int, found None"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, field: str, value: Any, expected: str) -> None:
    """Before this package's own code computes with it."""
    with pytest.raises(UnsupportedConfigError, match=f"^the model: {expected}"):
        meta_placement(provider_of(name, **{field: value}), "the model")


def test_more_layers_than_tensors() -> None:
    with pytest.raises(
        UnsupportedConfigError, match=r"^the model: the config has 1000000000004 layers, the weights are"
    ):
        meta_placement(provider_of("llama", mtp_num_layers=10**12, num_layers=4), "the model", num_stored=40)


def test_a_provider_may_have_a_spec_in_place_of_a_function() -> None:
    """One ModuleSpec for all layers: the same weights, live and as a checkpoint would hold them."""
    provider = provider_of("llama")
    provider.finalize()
    expected = {parameter.name for parameter in meta_placement(provider)[0]}
    provider.transformer_layer_spec = gpt_provider.local_layer_spec(provider)
    assert {parameter.name for parameter in meta_placement(provider)[0]} == expected
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
    assert {parameter.name for parameter in read_placement([model])} == expected
