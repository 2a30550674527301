"""Checks of a provider's values: what a file can get wrong is found before anything computes with it."""

import dataclasses
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeAliasType, Union, get_args, get_origin, is_typeddict

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig

# Sizes that this package multiplies and divides by before megatron-core sees them.
_AT_LEAST_ONE = ("num_layers", "hidden_size", "vocab_size", "make_vocab_size_divisible_by")
# Either one number for all layers, a period, or one number for each layer.
_FREQUENCIES = ("moe_layer_freq", "linear_attention_freq", "window_attn_skip_freq", "no_rope_freq")


def check_provider(provider: "DecoderConfig") -> None:
    """Checks that each field has a value of its declared type, and that sizes and lists can be those of a model.

    Without this, a size that is a string would surface as whatever first fails to compute with it.

    Raises:
        UnsupportedConfigError: naming every field with such a value.
    """
    problems = [
        f"{field.name}: expected {expected}, found {getattr(provider, field.name)!r:.100}"
        for field in dataclasses.fields(provider)
        if (expected := _expected(field, getattr(provider, field.name), provider.num_layers))
    ]
    window = provider.window_rope_parameters
    if not problems and window is not None and "rope_theta" not in window:
        problems.append("window_rope_parameters: expected a rope_theta")
    if problems:
        raise UnsupportedConfigError(f"{'; '.join(problems):.2000}; correct the config")


def _expected(field: "dataclasses.Field[Any]", value: object, num_layers: int) -> str | None:
    """What a field should have held instead of `value`; `None` if `value` is fine."""
    if value is None and (field.default is None or field.name == "q_lora_rank"):
        return None  # megatron-core's `int` may mean `int | None`
    if not _has_type(value, field.type):
        return field.type.__name__ if isinstance(field.type, type) else str(field.type)
    smallest = int(field.name in _AT_LEAST_ONE or field.name in _FREQUENCIES)
    if type(value) is int and not smallest <= value < 2**63:
        return f"a number from {smallest}, below 2^63"
    if field.name in _FREQUENCIES and isinstance(value, list | tuple) and len(value) != num_layers:
        return f"one number for each of {num_layers} layers"
    return None


def _has_type(value: object, declared: object) -> bool:
    """Whether a value has a declared type. Anything can be a truth value; a type that cannot be checked always fits."""
    declared = declared.__value__ if isinstance(declared, TypeAliasType) else declared
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return any(_has_type(value, choice) for choice in arguments)
    if is_typeddict(declared):
        kinds = getattr(declared, "__annotations__", {})
        return isinstance(value, dict) and all(_has_type(value[name], kinds[name]) for name in kinds.keys() & value)
    if origin in (list, tuple):  # JSON has lists only
        return isinstance(value, list | tuple) and all(_has_type(item, arguments[0]) for item in value)
    if declared is int or declared is float:  # but `True` is no number
        return type(value) is int or (declared is float and type(value) is float)
    kind = origin or declared
    return kind is bool or not isinstance(kind, type) or isinstance(value, kind)
