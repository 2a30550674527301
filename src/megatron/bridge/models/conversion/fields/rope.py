"""Rotary embeddings: one for all layers, or one for layers with full attention and another for those with a window."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Provider, Values, converted

_ROPE_KINDS = {"full_attention", "sliding_attention"}


def rotary_fields(hf_config: HFConfig) -> Values:
    """The provider fields of the rotary embedding, or of the two: with full attention, and with a window.

    Raises:
        UnsupportedConfigError: no rope parameters, or parameters for other kinds of layers.
    """
    stated: Values = getattr(hf_config, "rope_parameters", None) or {}
    is_nested = bool(stated) and set(stated) <= _ROPE_KINDS
    parameters, window = (
        (stated.get("full_attention"), stated.get("sliding_attention")) if is_nested else (stated, None)
    )
    if not parameters or "rope_theta" not in parameters or (is_nested and not window):
        raise UnsupportedConfigError(
            f"rope_parameters must hold rope_theta for all layers, or for full_attention and "
            f"sliding_attention, found {stated!r}"
        )
    rotary_percent = _rotary_percent(parameters)
    if window and _rotary_percent(window) != rotary_percent:
        raise UnsupportedConfigError("rope_parameters: partial_rotary_factor must be the same for all kinds of layers")
    return {
        "position_embedding_type": "rope",
        "rotary_base": float(parameters["rope_theta"]),
        "rotary_percent": rotary_percent,
        "rope_parameters": _without_own_fields(parameters, "rope_theta"),
        "window_rope_parameters": _without_own_fields(window) if window else None,
    }


def _without_own_fields(parameters: Mapping[str, Any], *names: str) -> Values:
    """The parameters for which a provider has no field of their own, so that each number is stated once."""
    is_proportional = parameters.get("rope_type") == "proportional"
    own = (*names, *(() if is_proportional else ("partial_rotary_factor",)))
    return {name: value for name, value in parameters.items() if name not in own}


def _rotary_percent(parameters: Mapping[str, Any]) -> float:
    """The rotated part of each head. Proportional rope rotates all of it, some dimensions by the angle 0."""
    is_proportional = parameters.get("rope_type") == "proportional"
    return 1.0 if is_proportional else float(parameters.get("partial_rotary_factor", 1.0))


def rotary_values(provider: Provider) -> Values:
    """The inverse of `rotary_fields`."""
    parameters = provider.whole_rope_parameters(False)
    if provider.window_rope_parameters is not None:
        parameters = {"full_attention": parameters, "sliding_attention": provider.whole_rope_parameters(True)}
    return {"rope_parameters": parameters}


def rope(partial: bool = False, by_kind: bool = False) -> Part:
    """The rotary embedding. What transformers' models of an architecture do not read of the field is refused.

    Args:
        partial: a part of each head may be rotated (`partial_rotary_factor`).
        by_kind: layers with full attention and those with a window may have an embedding each.

    Example: `rope(partial=True).reads` is `('rope_parameters',)`.
    """

    def to_provider(hf_config: HFConfig) -> Values:
        fields = rotary_fields(hf_config)
        if fields["rotary_percent"] != 1.0 and not partial:
            raise UnsupportedConfigError(
                f"rope_parameters: partial_rotary_factor {fields['rotary_percent']} cannot be represented: in models "
                "of this architecture, transformers rotates whole heads whatever it says; expected 1.0"
            )
        if fields["window_rope_parameters"] is not None and not by_kind:
            raise UnsupportedConfigError(
                "rope_parameters: models of this architecture have one rotary embedding for all layers, found two"
            )
        return fields

    return Part(reads=("rope_parameters",), to_provider=to_provider, to_hf=rotary_values)


ROPE, PARTIAL_ROPE, ROPE_BY_KIND = rope(), rope(partial=True), rope(by_kind=True)


def _rope_of_older_class(hf_config: HFConfig) -> Values:
    parameters = {
        "rope_type": "default",
        "rope_theta": getattr(hf_config, "rope_theta", None),
        "partial_rotary_factor": getattr(hf_config, "partial_rotary_factor", 1.0),
        **(getattr(hf_config, "rope_parameters", None) or {}),
    }
    return rotary_fields(SimpleNamespace(rope_parameters=parameters))


def _values_of_older_class(provider: Provider) -> Values:
    separate = {"rope_theta": provider.rotary_base, "partial_rotary_factor": provider.rotary_percent}
    return {**rotary_values(provider), **separate}


# For config classes that may have been written for transformers 4, where these fields are separate.
OLDER_ROPE = Part(
    reads=("rope_parameters", "rope_theta", "partial_rotary_factor"),
    to_provider=_rope_of_older_class,
    to_hf=_values_of_older_class,
)


def _alpha_fields(hf_config: HFConfig) -> Values:
    assert ROPE.to_provider is not None
    fields = ROPE.to_provider(hf_config)
    parameters = fields["rope_parameters"]
    if parameters["rope_type"] == "dynamic" and parameters.get("alpha"):
        fields["rope_parameters"] = {**parameters, "rope_type": "ntk_alpha"}
    return fields


def _alpha_values(provider: Provider) -> Values:
    parameters = rotary_values(provider)["rope_parameters"]
    return {"rope_parameters": {**parameters, "rope_type": "dynamic"} if "alpha" in parameters else parameters}


# A rope whose base is stretched by `alpha`. Such checkpoints call it dynamic, but it does not depend on the length.
ALPHA_ROPE = Part(reads=("rope_parameters",), to_provider=_alpha_fields, to_hf=_alpha_values)

# In `no_rope_layers`, 1 stands for a layer with a rotary embedding; in Megatron's field, for one without.
NO_ROPE_LAYERS = converted(
    "no_rope_layers",
    "no_rope_freq",
    lambda has_rope: [int(not rope) for rope in has_rope],
    lambda no_rope: [1 - layer for layer in no_rope],
)


def _rope_in_windows(hf_config: HFConfig) -> Values:
    if hf_config.sliding_window is None:
        return {}
    no_rope = [int(kind == "full_attention") for kind in hf_config.layer_types]
    if all(no_rope):
        raise UnsupportedConfigError(
            f"sliding_window {hf_config.sliding_window} with no sliding_attention in "
            "layer_types leaves every layer without rope; set sliding_window to null for a model with rope"
        )
    return {"no_rope_freq": no_rope}


# If any layers have windows, only they have a rotary embedding.
ROPE_IN_WINDOWS = Part(to_provider=_rope_in_windows)
