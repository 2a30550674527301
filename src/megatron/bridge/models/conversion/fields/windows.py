"""Sliding-window attention, on all layers or on some."""

from typing import Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import Part


def _to_provider(hf_config: Any) -> dict[str, Any]:
    """HF window W sees W positions, Megatron's (W - 1, 0) likewise.

    Raises:
        UnsupportedConfigError: a kind of layer that is neither full nor sliding attention.
    """
    window = getattr(hf_config, "sliding_window", None)
    if window is None or not getattr(hf_config, "use_sliding_window", True):
        return {}
    fields: dict[str, Any] = {"window_size": (window - 1, 0)}
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types is None:
        return fields
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedConfigError(
            f"layer_types {unknown} are not supported; supported: full_attention, sliding_attention"
        )
    is_sliding = [kind == "sliding_attention" for kind in layer_types]
    if not any(is_sliding):
        return {}
    if not all(is_sliding):
        fields["window_attn_skip_freq"] = [int(sliding) for sliding in is_sliding]
    return fields


def _to_hf(provider: Any) -> dict[str, Any]:
    if provider.window_size is None:
        return {
            "sliding_window": None,
            "use_sliding_window": False,
            "layer_types": ["full_attention"] * provider.num_layers,
        }
    is_sliding = provider.window_attn_skip_freq or [1] * provider.num_layers
    return {
        "sliding_window": provider.window_size[0] + 1,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in is_sliding],
    }


def _windows(*reads: str) -> Part:
    return Part(reads=reads, to_provider=_to_provider, to_hf=_to_hf)


# A window on every layer, if there is one; on the layers that `layer_types` names; and the same with a switch.
WINDOW = _windows("sliding_window")
WINDOW_LAYERS = _windows("sliding_window", "layer_types")
SWITCHED_WINDOW_LAYERS = _windows("sliding_window", "use_sliding_window", "layer_types")
