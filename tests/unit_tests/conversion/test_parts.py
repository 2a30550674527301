"""Parts of configs: how they combine, and the tables and hooks that are made of them."""

from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.transformer.experimental_attention_variant.dsa import is_dsa_skip_topk_layer
from transformers import LlamaConfig

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import fields
from megatron.bridge.models.conversion.fields.activations import ACTIVATIONS, activation_functions, activation_name
from megatron.bridge.models.conversion.fields.latent_attention import indexer_types
from megatron.bridge.models.conversion.fields.part import combined, hf_fields, in_force, provider_fields
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.registered import registered_bridges
from megatron.bridge.models.llama.llama_bridge import LlamaBridge
from tests.tiny_models import TINY_MODELS


def test_the_later_part_is_right() -> None:
    tables = combined(
        [
            fields.same("a", "b", "c"),
            fields.same(a="other"),
            fields.not_read("b"),
            fields.fixed(c=1),
            fields.defaults(x=1, y=1),
            fields.defaults(y=2),
        ]
    )
    assert tables.same == {"a": "other"}
    assert dict(tables.irrelevant) == {"b": "transformers does not read it"}
    assert dict(tables.fixed) == {"c": 1}
    assert dict(tables.defaults) == {"x": 1, "y": 2}


def test_a_part_that_reads_the_same_fields_takes_the_place_of_an_earlier_one() -> None:
    earlier = fields.Part(reads=("a", "b"), to_provider=lambda config: {"from": "earlier"})
    wider = fields.Part(reads=("a", "b", "c"), to_provider=lambda config: {"from": "wider"})
    narrower = fields.Part(reads=("a",), to_provider=lambda config: {"also": "narrower"})
    always = fields.Part(to_provider=lambda config: {"always": True})
    assert in_force((earlier, wider)) == [wider]
    assert in_force((always, earlier, narrower)) == [always, earlier, narrower]
    assert provider_fields(SimpleNamespace(), (always, earlier, wider), {}) == {"always": True, "from": "wider"}


def test_only_fields_of_the_config_class_are_written() -> None:
    provider = SimpleNamespace(window_size=(7, 0), window_attn_skip_freq=None, num_layers=2)
    assert hf_fields(provider, (fields.WINDOW,), {}) == {"sliding_window": 8}
    assert set(hf_fields(provider, (fields.SWITCHED_WINDOW_LAYERS,), {})) == set(fields.SWITCHED_WINDOW_LAYERS.reads)


def test_converted() -> None:
    part = fields.converted("scaling", "multiplier", lambda x: 1 / x, lambda x: 1 / x)
    assert provider_fields(SimpleNamespace(scaling=4.0), (part,), {}) == {"multiplier": 0.25}
    assert hf_fields(SimpleNamespace(multiplier=0.25), (part,), {}) == {"scaling": 4.0}


def test_every_family_reads_its_config_without_torch_values() -> None:
    """What `inspect` shows is what a conversion computes with, activation functions by name."""
    for tiny in TINY_MODELS.values():
        bridge = registered_bridges()[tiny.architecture].bridge_class()
        hf_config = tiny.hf_config()
        plain, given = bridge.config_fields(hf_config), bridge.hf_config_to_provider_kwargs(hf_config)
        if isinstance(plain.get("activation_func"), str):
            plain["activation_func"] = activation_functions()[plain["activation_func"]]
        assert {**given, **plain} == given
        assert given.keys() - plain.keys() == {"make_vocab_size_divisible_by"}


def test_a_bridge_may_state_a_table_of_its_own() -> None:
    """As bridges of other projects do, with pairs of names."""

    class Own(MegatronModelBridge):
        CONFIG_MAPPING = [
            *dict(MegatronModelBridge.CONFIG_MAPPING).items(),
            ("loss_weight", "moe_z_loss_coeff"),
            ("attention_bias", "add_qkv_bias"),
        ]
        CONFIG_FIXED = {"mlp_bias": False}

        def mapping_registry(self) -> MegatronMappingRegistry:
            return MegatronMappingRegistry()

        def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
            return {**super().hf_config_to_provider_kwargs(hf_config), "qk_layernorm": True}

    hf_config = LlamaConfig(num_hidden_layers=2, loss_weight=0.5, architectures=["LlamaForCausalLM"])
    given = Own().hf_config_to_provider_kwargs(hf_config)
    assert (given["moe_z_loss_coeff"], given["qk_layernorm"], given["num_layers"]) == (0.5, True, 2)
    assert dict(LlamaBridge.CONFIG_MAPPING)["mlp_bias"] == "mlp_bias" and "mlp_bias" not in dict(Own.CONFIG_MAPPING)


def test_errors_name_the_model_and_the_field() -> None:
    hf_config = LlamaConfig(hidden_act="mish", architectures=["LlamaForCausalLM"], name_or_path="some/model")
    with pytest.raises(UnsupportedConfigError, match=r"^LlamaConfig of some/model: hidden_act: activation 'mish' is"):
        LlamaBridge().hf_config_to_provider_kwargs(hf_config)


def test_activations_have_names_in_both_directions() -> None:
    assert tuple(activation_functions()) == ACTIVATIONS
    for name, function in activation_functions().items():
        assert activation_functions()[activation_name(function)] is function, name


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("freq", range(1, 5))
def test_layers_that_share_indices_are_those_of_megatron_core(freq: int, offset: int) -> None:
    kinds = indexer_types(9, freq, offset)
    assert kinds == ["shared" if is_dsa_skip_topk_layer(1 + layer, offset, freq) else "full" for layer in range(9)]
    [part, *_] = fields.SHARED_INDICES
    assert part.to_provider is not None
    schedule = part.to_provider(SimpleNamespace(indexer_types=kinds, num_hidden_layers=9))
    found = indexer_types(9, schedule["dsa_indexer_topk_freq"], schedule["dsa_indexer_skip_topk_offset"])
    assert found == kinds
