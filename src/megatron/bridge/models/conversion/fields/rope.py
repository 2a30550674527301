"""Rotary embeddings: one for all layers, or one for layers with full attention and one for those with a window."""

from collections.abc import Mapping
from typing import Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import Part

_ROPE_KINDS = {"full_attention", "sliding_attention"}


def rotary_fields(hf_config: Any) -> dict[str, Any]:
    """The provider fields of the rotary embedding, or of two: of layers with full attention and with a window.

    Raises:
        UnsupportedConfigError: no rope parameters, or parameters for other kinds of layers.
    """
    stated: dict[str, Any] = getattr(hf_config, "rope_parameters", None) or {}
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
        "rope_parameters": dict(parameters),
        "window_rope_parameters": dict(window) if window else None,
    }


def _rotary_percent(parameters: Mapping[str, Any]) -> float:
    """The rotated part of each head. Proportional rope turns all of it, some dimensions by the angle 0."""
    is_proportional = parameters.get("rope_type") == "proportional"
    return 1.0 if is_proportional else float(parameters.get("partial_rotary_factor", 1.0))


def rotary_values(provider: Any) -> dict[str, Any]:
    """The inverse of `rotary_fields`."""
    parameters = provider.rope_parameters or {"rope_type": "default", "rope_theta": provider.rotary_base}
    if provider.window_rope_parameters is not None:
        parameters = {"full_attention": parameters, "sliding_attention": provider.window_rope_parameters}
    return {"rope_parameters": parameters}


ROPE = Part(reads=("rope_parameters",), to_provider=rotary_fields, to_hf=rotary_values)


def _marked_layers(hf_config: Any) -> dict[str, Any]:
    # HF marks the layers with rope, Megatron those without.
    return {"no_rope_freq": [1 - has_rope for has_rope in hf_config.no_rope_layers[: hf_config.num_hidden_layers]]}


# `no_rope_layers`: which layers have a rotary embedding (1) and which do not (0).
NO_ROPE_LAYERS = Part(
    reads=("no_rope_layers",),
    irrelevant={"no_rope_layer_interval": "transformers turns it into no_rope_layers"},
    to_provider=_marked_layers,
    to_hf=lambda provider: {"no_rope_layers": [1 - no_rope for no_rope in provider.no_rope_freq]},
)
