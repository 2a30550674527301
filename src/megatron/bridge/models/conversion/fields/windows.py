"""Sliding-window attention, on all layers or on some."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Provider, Values


def _to_provider(hf_config: HFConfig) -> Values:
    """The window of W positions that HF writes as W and Megatron as (W - 1, 0).

    Raises:
        UnsupportedConfigError: a kind of layer that is neither full nor sliding attention.
    """
    window = getattr(hf_config, "sliding_window", None)
    if window is None or not getattr(hf_config, "use_sliding_window", True):
        return {}
    fields: Values = {"window_size": (window - 1, 0)}
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


def _to_hf(provider: Provider) -> Values:
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


# A window, if there is one, on every layer; on the layers that `layer_types` names; and the same with a switch.
WINDOW = _windows("sliding_window")
WINDOW_LAYERS = _windows("sliding_window", "layer_types")
SWITCHED_WINDOW_LAYERS = _windows("sliding_window", "use_sliding_window", "layer_types")


def _heads_by_kind(hf_config: HFConfig) -> Values:
    heads: dict[str, set[tuple[int, int]]] = {"sliding_attention": set(), "full_attention": set()}
    for kind, layer in zip(hf_config.layer_types, hf_config.per_layer_config, strict=True):
        heads[kind].add((layer.head_dim, layer.num_key_value_heads))
    if {len(sizes) for sizes in heads.values()} != {1}:
        raise UnsupportedConfigError(
            f"expected one (head_dim, num_key_value_heads) for all layers of a kind, "
            f"found {heads}; per_layer_config may only change those of all layers with full_attention"
        )
    (window,), (full,) = heads.values()
    return {
        "num_attention_heads": hf_config.num_attention_heads,
        "kv_channels": full[0],
        "num_query_groups": full[1],
        "window_attention": {"kv_channels": window[0], "num_query_groups": window[1]},
    }


def _values_by_kind(provider: Provider) -> Values:
    window, full = provider.attention_config(True), provider.attention_config(False)
    values = {
        "num_attention_heads": window.num_attention_heads // window.num_query_groups * window.num_hf_query_groups,
        "num_key_value_heads": window.num_hf_query_groups,
        "head_dim": window.kv_channels,
    }
    heads = {"head_dim": full.kv_channels, "num_key_value_heads": full.num_hf_query_groups}
    changed = {name: value for name, value in heads.items() if value != values[name]}
    full_layers = [layer for layer in range(provider.num_layers) if not provider.has_window(layer + 1)]
    return {**values, "per_layer_config": dict.fromkeys(full_layers, changed) if changed else {}}


# Heads that differ between layers with a window and the others. transformers then gives these fields for each layer,
# and not for the whole model.
HEADS_BY_KIND = Part(
    reads=("num_attention_heads", "num_key_value_heads", "head_dim", "per_layer_config"),
    to_provider=_heads_by_kind,
    to_hf=_values_by_kind,
)
