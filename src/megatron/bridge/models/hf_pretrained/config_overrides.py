"""New values for fields of a `config.json`, merged with what the file says."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The fields that state a rotary embedding: transformers 5 has all of it in the first.
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
# What is kept of a rotary embedding if an override asks for another kind of scaling.
_KEPT = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
# Kinds that scale relative to the length that the model was first trained for.
_NEED_LENGTH = ("yarn", "llama3", "longrope")
_LENGTH = "original_max_position_embeddings"


def merged(
    values: Mapping[str, Any], config: "PretrainedConfig", overrides: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The content of a `config.json` with new values for some fields.

    A rotary embedding, in the spelling of transformers 5 (`rope_parameters`) or an older one (`rope_scaling`,
    `rope_theta`), and a nested config (`text_config`) keep what the override does not name. Any other value is
    replaced; the name may be a second name that the config class has for a field.

    Args:
        values: what the file says.
        config: the config made of `values`.
        where: the file, for errors.

    Raises:
        UnsupportedConfigError: an override names no field, or two overrides contradict each other.

    Example: with `{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}`, the model's `rope_theta` stays.
    """
    result, names = dict(values), dict(config.attribute_map)
    for name in overrides:
        if name not in values and name not in names and name not in _ROPE and not hasattr(config, name):
            close = difflib.get_close_matches(name, config.to_dict())
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UnsupportedConfigError(f"{where}: {type(config).__name__} has no field {name!r} to override.{hint}")
    if isinstance(getattr(config, _ROPE[0], None), dict):
        stated = {name: value for name, value in overrides.items() if name in _ROPE}
        overrides = {name: value for name, value in overrides.items() if name not in stated}
        if stated:
            result = {name: value for name, value in result.items() if name not in _ROPE}
            try:
                result["rope_parameters"] = _merged_rope(config, stated)
            except UnsupportedConfigError as error:
                raise UnsupportedConfigError(f"{where}: {error}") from None
    given: dict[str, Any] = {}
    for name, value in overrides.items():
        field = names.get(name, name)
        if field in given and given[field] != value:
            raise UnsupportedConfigError(
                f"{where}: {name} and another name of {field} are overridden with {value!r} and {given[field]!r}"
            )
        nested: Any = getattr(config, name, None)
        if hasattr(nested, "to_dict") and isinstance(value, Mapping) and isinstance(values.get(name), Mapping):
            value = merged(values[name], nested, value, where)
        given[field] = value
    others = {name for name, field in names.items() if field in given}
    return {name: value for name, value in result.items() if name not in others} | given


def check_in_force(config: "PretrainedConfig", overrides: Mapping[str, Any], where: str) -> None:
    """Raises `UnsupportedConfigError` if a config, made of merged values, does not say what an override says."""
    for name, value in overrides.items():
        found = getattr(config, name, None)
        if name in _ROPE or value is None or isinstance(value, Mapping):  # `None` leaves it to the config class
            continue
        if found == value or str(found) == f"torch.{value}":
            continue
        if isinstance(value, list | tuple) and isinstance(found, list | tuple) and list(found) == list(value):
            continue
        raise UnsupportedConfigError(
            f"{where}: {type(config).__name__} has {name} = {found!r:.300} although {value!r:.300} is asked for, "
            "because it derives the field from others; override those"
        )


def _merged_rope(config: "PretrainedConfig", stated: dict[str, Any]) -> dict[str, Any]:
    source = getattr(config, _ROPE[0])
    new: dict[str, Any] = {}
    for name in _ROPE:
        if name not in stated:
            continue
        # Without a scaling, the default kind of rope is left.
        value = stated[name] if name in _ROPE[2:] else stated[name] or {"rope_type": "default"}
        if name not in _ROPE[2:] and not isinstance(value, Mapping):
            raise UnsupportedConfigError(f"{name}: expected an object, found {value!r:.300}")
        for key, number in {name: value}.items() if name in _ROPE[2:] else value.items():
            key = "rope_type" if key == "type" else key
            if key in new and new[key] != number:
                raise UnsupportedConfigError(f"{', '.join(stated)}: both {new[key]!r} and {number!r} given for {key}")
            new[key] = number
    kinds = {name for name, value in source.items() if isinstance(value, Mapping)}
    if not kinds:
        return _merged_kind(config, source, new)
    if not new.keys() <= kinds:
        raise UnsupportedConfigError(
            f"{', '.join(stated)}: this model has a rotary embedding for each kind of layer, so say for which one, as "
            f"in rope_parameters={{{next(iter(sorted(kinds)))!r}: {new!r:.300}}}"
        )
    return {kind: _merged_kind(config, source[kind], new.get(kind, {})) for kind in source}


def _merged_kind(config: "PretrainedConfig", source: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    kind = new.get("rope_type", new.get("type", source.get("rope_type", "default")))
    is_same = kind == source.get("rope_type", "default")
    kept = {name: value for name, value in source.items() if is_same or name in _KEPT}
    if kind == "default":
        kept.pop(_LENGTH, None)
    elif kind in _NEED_LENGTH:
        kept.setdefault(_LENGTH, getattr(config, "max_position_embeddings", None))
    return {**kept, **{name: value for name, value in new.items() if name != "type"}, "rope_type": kind}
