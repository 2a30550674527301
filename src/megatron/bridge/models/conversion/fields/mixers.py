"""Layers that mix positions without attention: gated delta nets, short convolutions and Mamba-2."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import (
    HFConfig,
    Part,
    Parts,
    Provider,
    Values,
    converted,
    irrelevant,
    same,
    turned_into,
)

# The sizes of gated delta nets, and what all models with such layers have in common.
GATED_DELTA_NET = Part(
    same={
        name: name
        for name in (
            "linear_conv_kernel_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_num_key_heads",
            "linear_num_value_heads",
        )
    },
    defaults={
        "experimental_attention_variant": "gated_delta_net",
        "attention_output_gate": True,
        "layernorm_zero_centered_gamma": True,
        "qk_layernorm": True,
    },
)


def linear_attention(kind: str = "linear_attention") -> Part:
    """Which layers have linear attention.

    Args:
        kind: the name in `layer_types` of these layers, or of those that a family has instead ("conv").
    """
    kinds = ("full_attention", kind)

    def to_provider(hf_config: HFConfig) -> Values:
        unknown = sorted(set(hf_config.layer_types) - set(kinds))
        if unknown:
            raise UnsupportedConfigError(f"layer_types {unknown} are not supported; supported: {', '.join(kinds)}")
        return {"linear_attention_freq": [int(layer == kind) for layer in hf_config.layer_types]}

    def to_hf(provider: Provider) -> Values:
        return {"layer_types": [kinds[is_linear] for is_linear in provider.linear_attention_freq]}

    return Part(reads=("layer_types",), to_provider=to_provider, to_hf=to_hf)


_LAYER_LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def _pattern(kinds: list[str]) -> str:
    return "".join(_LAYER_LETTERS[kind] for kind in kinds)


def _kinds(pattern: str) -> list[str]:
    kinds = {letter: kind for kind, letter in _LAYER_LETTERS.items()}
    return [kinds[letter] for letter in pattern.replace("|", "")]


# The kind of each layer of a HybridModel, and of each layer inside a prediction layer.
LAYER_KINDS: Parts = (
    converted("layers_block_type", "hybrid_layer_pattern", _pattern, _kinds),
    converted("mtp_layers_block_type", "mtp_hybrid_override_pattern", _pattern, _kinds),
    Part(to_provider=lambda hf_config: {"num_layers": len(hf_config.layers_block_type)}),
    irrelevant("the length of layers_block_type", "num_hidden_layers"),
    turned_into("layers_block_type", "hybrid_override_pattern"),
)


def _step_limit(hf_config: HFConfig) -> Values:
    smallest, largest = hf_config.time_step_limit or (0.0, float("inf"))
    if largest != float("inf"):
        raise UnsupportedConfigError(f"time_step_limit: expected no largest step size, found {largest!r}")
    return {"mamba_dt_min": float(smallest)}


# The smallest step of Mamba-2. megatron-core has no largest one.
STEP_LIMIT = Part(
    reads=("time_step_limit",),
    to_provider=_step_limit,
    to_hf=lambda provider: {"time_step_limit": (provider.mamba_dt_min, float("inf"))},
)


def mamba(num_heads: str, head_dim: str, num_groups: str, state_size: str, chunk_size: str) -> Part:
    """The sizes of Mamba-2 mixers.

    Args:
        num_heads, head_dim, num_groups, state_size, chunk_size: the names of their HF fields.
    """
    fields = ("mamba_num_heads", "mamba_head_dim", "mamba_num_groups", "mamba_state_dim", "mamba_chunk_size")
    return same(**dict(zip((num_heads, head_dim, num_groups, state_size, chunk_size), fields, strict=True)))


def mixer_width(provider: Provider) -> int:
    """The number of channels in a Mamba-2 mixer."""
    return int(provider.mamba_num_heads * provider.mamba_head_dim)
