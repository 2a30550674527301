"""The HF config of an export: what it says is derived from the model that is exported, and proven to describe it.

The source's config is read into a provider, and both providers into HF fields by the family's parts. Fields that differ
are replaced in the source's config, and all others are kept. The new config is then read like any other: if it does not
give back the model, there is no config that describes the model, and that is an error.
"""

import dataclasses
from collections.abc import Mapping
from copy import copy
from math import isclose
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.hf_files import hf_tensor_infos
from megatron.bridge.models.conversion.hooks import BridgeHooks
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.not_computing import is_computing
from megatron.bridge.models.conversion.plan import TensorInfo
from megatron.bridge.models.conversion.registered import find_bridge
from megatron.bridge.models.hf_pretrained.config import make_config
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.transformer.decoder_config import DecoderConfig, MLADecoderConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# HF fields that are stated elsewhere: the family's, and the dtype of the exported tensors.
_NOT_COMPARED = ("architectures", "model_type", "dtype")
# Kinds of rope that scale relative to `seq_length`.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class ExportedConfig(NamedTuple):
    """The config of an export.

    Attributes:
        config: the config; the source's own, if it describes the model.
        changes: HF field -> the source's value and the model's, where they differ.
    """

    config: "PretrainedConfig"
    changes: dict[str, tuple[object, object]]


def exported_config(bridge: BridgeHooks, hf_pretrained: HFModel, model_config: object) -> ExportedConfig:
    """The HF config that describes a Megatron model.

    Args:
        bridge: a bridge of the model's family.
        hf_pretrained: the source, from which everything comes that does not change the computation.
        model_config: the model's provider. If it is no `DecoderConfig`, nothing is known of it, and the source's config
            is taken as it is.

    Raises:
        UnsupportedConfigError: the source is of another architecture; or no config of the family describes the model,
            naming the provider fields that none can state.
    """
    source = hf_pretrained.config
    family = type(find_bridge(source).bridge_class())
    if family is not type(bridge):
        raise UnsupportedConfigError(
            f"{hf_pretrained.model_name_or_path}: its architecture {source.architectures} is not that of the model to "
            f"export ({type(bridge).__name__}); take config and tokenizer from a model of the same architecture"
        )
    if not isinstance(model_config, DecoderConfig):
        return ExportedConfig(source, {})
    reference = bridge.provider_bridge(hf_pretrained)
    before, after = _computing_part(reference, type(reference)), _computing_part(model_config, type(reference))
    if not _length_counts(after):  # then it is a bound: training on shorter sequences does not lower it
        after.seq_length = max(before.seq_length, after.seq_length)
    changed = _differences(before, after)
    if not changed:
        return ExportedConfig(source, {})
    where = f"{hf_pretrained.model_name_or_path}: the model was changed ({', '.join(changed)})"
    try:
        old, new = bridge.megatron_to_hf_config(before), bridge.megatron_to_hf_config(after)
        changes = {
            name: (old.get(name), value)
            for name, value in new.items()
            if name not in _NOT_COMPARED and not _same(old.get(name), value)
        }
        config = _with_values(source, {name: value for name, (_, value) in changes.items()})
        again = bridge.provider_bridge(SimpleNamespace(config=config, has_weights=False))
    except UnsupportedConfigError as error:
        raise UnsupportedConfigError(f"{where}, and its HF config cannot say so: {error}") from error
    _check_described(_computing_part(again, type(reference)), after, where)
    return ExportedConfig(config, changes)


def source_tensors(
    bridge: BridgeHooks, hf_pretrained: HFModel
) -> tuple[Mapping[str, TensorInfo], MegatronMappingRegistry] | None:
    """The source's tensors and the mappings of its config; `None` if there is only a config."""
    infos = hf_tensor_infos(hf_pretrained)
    if infos is None:
        return None
    of_source = type(bridge)()
    of_source.hf_config = hf_pretrained.config
    return infos, of_source.registry(hf_pretrained)


def _check_described(described: DecoderConfig, model: DecoderConfig, where: str) -> None:
    not_stated = () if _length_counts(model) else ("seq_length",)
    problems = [
        f"{name} is {_shown(model, name)}, and with the exported config it would be {_shown(described, name)}"
        for name in _differences(described, model)
        if not name.startswith("mtp_") and name not in not_stated  # prediction layers are known by their tensors
    ]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedConfigError(
            f"{where}, and no HF config of this architecture describes it:\n{lines}\n"
            "Build the model with other values of these fields, or export its weights alone (export_hf_weights)."
        )


def _shown(provider: DecoderConfig, name: str) -> str:
    value = getattr(provider, name)
    return str(getattr(value, "__name__", f"{value!r:.300}"))


def _computing_part(provider: DecoderConfig, provider_class: type[Any]) -> Any:
    """A finalised provider of an unsharded model with only those fields of `provider` that change the computation.

    Where two values mean the same, it has one of them: a period of layers is a list, and padded heads are left out.
    """
    part: Any = provider_class()
    unused = _unused_prefixes(provider)
    for field in dataclasses.fields(part):
        if is_computing(field.name) and not field.name.startswith(unused) and hasattr(provider, field.name):
            setattr(part, field.name, copy(getattr(provider, field.name)))
    part.unpadded_query_groups = provider.unpadded_query_groups
    _use_lists(part)
    part.finalize()
    part.add_qkv_bias = part.add_qkv_bias or part.add_bias_linear
    for name in ("attention_output_bias", "mlp_bias"):
        if getattr(part, name) is None:
            setattr(part, name, part.add_bias_linear)
    if part.softmax_scale is None and part.kv_channels and not part.multi_latent_attention:
        part.softmax_scale = part.kv_channels**-0.5
    part.rope_parameters = {"rope_type": "default", **(part.rope_parameters or {})}
    part.rope_parameters.pop("rope_theta", None)
    if part.moe_router_load_balancing_type != "sinkhorn":  # the others are losses
        part.moe_router_load_balancing_type = "aux_loss"
    return part


def _unused_prefixes(provider: DecoderConfig) -> tuple[str, ...]:
    """The beginnings of the names of fields that change nothing in this model."""
    variant = provider.experimental_attention_variant
    rules = {
        ("moe_",): provider.num_moe_experts is None,
        ("dsa_",): variant != "dsa",
        ("linear_conv_", "linear_key_", "linear_value_", "linear_num_"): variant != "gated_delta_net",
        ("mup_",): not provider.use_mup,
        ("rotary_", "rope_parameters"): provider.position_embedding_type == "none",
        ("norm_bias",): provider.normalization != "LayerNorm" and variant != "dsa",
        ("qk_layernorm_scope",): not provider.qk_layernorm,
    }
    return tuple(prefix for prefixes, is_unused in rules.items() if is_unused for prefix in prefixes)


def _use_lists(part: Any) -> None:
    layers = range(part.num_layers)
    if isinstance(freq := part.moe_layer_freq, int) and freq > 0:
        part.moe_layer_freq = [int(layer % freq == 0) for layer in layers]
    if isinstance(freq := part.linear_attention_freq, int) and freq > 0:
        part.linear_attention_freq = [int((layer + 1) % freq != 0) for layer in layers]
    has_window = [int(part.has_window(layer + 1)) for layer in layers]
    part.window_attn_skip_freq = None if all(has_window) or not any(has_window) else has_window
    if not any(has_window):
        part.window_size = None
    if hasattr(part, "hybrid_layer_pattern"):
        part.hybrid_layer_pattern = part.hybrid_layer_pattern.replace("|", "")  # which are ends of pipeline stages


def _length_counts(provider: DecoderConfig) -> bool:
    """Whether `seq_length` changes the computation, and is not only a bound."""
    return (provider.rope_parameters or {}).get("rope_type") in _LENGTH_DEPENDENT


def _differences(one: DecoderConfig, other: DecoderConfig) -> list[str]:
    """The computing fields in which two computing parts differ."""
    # What the HF config said: with multi-latent attention, the numbers are fields of their own.
    skipped = ("rope_parameters",) if isinstance(other, MLADecoderConfig) else ()
    return [
        field.name
        for field in dataclasses.fields(one)
        if is_computing(field.name)
        and field.name not in skipped
        and not _same(getattr(one, field.name), getattr(other, field.name))
    ]


def _same(one: Any, other: Any) -> bool:
    """Equality up to the rounding of a number that was converted to another form and back."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, int | float):
        return one == other or isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _with_values(config: "PretrainedConfig", values: Mapping[str, object]) -> "PretrainedConfig":
    """A config with some other values. What it says of each of another number of layers, its class derives anew."""
    content: dict[str, Any] = config.to_dict()
    num_layers = content.get("num_hidden_layers")
    if "num_hidden_layers" in values:
        content = {
            name: value for name, value in content.items() if not (isinstance(value, list) and len(value) == num_layers)
        }
    name_or_path = getattr(config, "name_or_path", "")
    return make_config(name_or_path or type(config).__name__, lambda: type(config).from_dict(content | dict(values)))
