"""Layers that mix positions without attention."""

from megatron.bridge.models.conversion.blocks.names import LAYER, Mappings, kinds
from megatron.bridge.models.conversion.fields.part import HFConfig
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    RMSNorm2ZeroCenteredRMSNormMapping,
    SectionMapping,
)


def gated_delta_net(config: HFConfig, *, hf: str = "model.layers.*.linear_attn", fused_by_head: bool) -> Mappings:
    """A gated delta net and the norm in front of it.

    Args:
        config: the HF config, for the sizes of the heads.
        fused_by_head: whether HF has two projections, (q, k, v, z) and (b, a), whose rows are grouped by key head;
            otherwise it has four: (q, k, v), z, b and a.
    """
    megatron = f"{LAYER}.self_attention"
    num_heads, per_head = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    keys, values = config.linear_key_head_dim, per_head * config.linear_value_head_dim
    mappings: Mappings = [
        AutoMapping(f"{megatron}.in_proj.layer_norm_weight", f"{hf.rpartition('.')[0]}.input_layernorm.weight"),
        AutoMapping(f"{megatron}.A_log", f"{hf}.A_log"),
        AutoMapping(f"{megatron}.dt_bias", f"{hf}.dt_bias"),
        RMSNorm2ZeroCenteredRMSNormMapping(
            f"{megatron}.out_norm.weight", f"{hf}.norm.weight", if_field="linear_out_norm_zero_centered"
        ),
        AutoMapping(f"{megatron}.out_proj.weight", f"{hf}.out_proj.weight"),
    ]

    def sections(weight: str, hf_name: str, names: tuple[str, ...], sizes: tuple[int, ...], num_groups: int) -> None:
        for index, name in enumerate(names):
            param = f"{megatron}.{weight}.{name}"
            mappings.append(SectionMapping(param, f"{hf}.{hf_name}.weight", sizes, index, num_groups))

    qkv = (num_heads * keys, num_heads * keys, num_heads * values)
    sections("conv1d.weight", "conv1d", ("query", "key", "value"), qkv, 1)
    if fused_by_head:
        parts = ("query", "key", "value", "z")
        sections("in_proj.weight", "in_proj_qkvz", parts, (keys, keys, values, values), num_heads)
        sections("in_proj.weight", "in_proj_ba", ("beta", "alpha"), (per_head, per_head), num_heads)
    else:
        sections("in_proj.weight", "in_proj_qkv", ("query", "key", "value"), qkv, 1)
        for name, hf_name in (("z", "in_proj_z"), ("beta", "in_proj_b"), ("alpha", "in_proj_a")):
            mappings.append(AutoMapping(f"{megatron}.in_proj.weight.{name}", f"{hf}.{hf_name}.weight"))
    return mappings


def short_convolution(
    hidden_size: int, *, hf: str = "model.layers.*.conv", norm: str = "model.layers.*.operator_norm", bias: bool = False
) -> Mappings:
    """A gated short convolution and the norm in front of it.

    Args:
        norm: HF name of the norm.
        bias: whether the convolution and the projections around it have biases.
    """
    megatron = f"{LAYER}.self_attention"
    mappings: Mappings = [AutoMapping(f"{megatron}.in_proj.layer_norm_weight", f"{norm}.weight")]
    for kind in kinds(bias):
        for index, part in enumerate(("B", "C", "x")):
            param = f"{megatron}.in_proj.{kind}.{part}"
            mappings.append(SectionMapping(param, f"{hf}.in_proj.{kind}", (hidden_size,) * 3, index))
        for name, hf_name in (("conv1d", "conv"), ("out_proj", "out_proj")):
            mappings.append(AutoMapping(f"{megatron}.{name}.{kind}", f"{hf}.{hf_name}.{kind}"))
    return mappings


def mamba(
    *,
    hf: str,
    num_heads: int,
    head_dim: int,
    num_groups: int,
    state_size: int,
    megatron: str = "mixer",
    norm: bool = True,
) -> Mappings:
    """A Mamba-2 mixer, without the norm in front of it.

    Args:
        num_heads, head_dim, num_groups, state_size: of the whole mixer. Its projection and its convolution each hold
            several tensors, one after the other, which megatron-core's checkpoints keep apart.
        megatron: Megatron's name for it.
        norm: whether it has a gated norm.
    """
    megatron = f"{LAYER}.{megatron}"
    inner, states = num_heads * head_dim, num_groups * state_size
    convolved = {"x": inner, "B": states, "C": states}
    sections = {
        "in_proj.weight": {"z": inner, **convolved, "dt": num_heads},
        "conv1d.weight": convolved,
        "conv1d.bias": convolved,
    }
    mappings: Mappings = [
        SectionMapping(f"{megatron}.{name}.{part}", f"{hf}.{name}", tuple(sizes.values()), index)
        for name, sizes in sections.items()
        for index, part in enumerate(sizes)
    ]
    whole = ("A_log", "D", "dt_bias", "out_proj.weight", *(("norm.weight",) if norm else ()))
    return [*mappings, *(AutoMapping(f"{megatron}.{name}", f"{hf}.{name}") for name in whole)]
