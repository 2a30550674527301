"""MLPs, with and without a gate."""

from collections.abc import Sequence

from megatron.bridge.models.conversion import param_mapping
from megatron.bridge.models.conversion.blocks.names import MLP, Mappings, kinds


def gated_mlp(
    *,
    hf: str = "model.layers.*.mlp",
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    fused_gate_up: str | None = None,
    fused_order: Sequence[str] = ("gate", "up"),
    transposed: bool = False,
) -> Mappings:
    """MLP with gate, up and down projections.

    Args:
        bias: whether they have biases.
        names: their HF names.
        fused_gate_up: HF name of the projection that holds both gate and up, if there is one.
        fused_order: the order of gate and up in it.
        transposed: whether the weights of the fused and the down projection are `[in, out]`.

    Example:
        >>> gated_mlp(fused_gate_up="gate_up_proj")[0]
        FusedGatedMLPMapping('decoder.layers.*.mlp.linear_fc1.weight', 'model.layers.*.mlp.gate_up_proj.weight')
    """
    mappings: Mappings = []
    for kind in kinds(bias):
        gate, up, down = (f"{hf}.{name}.{kind}" for name in names)
        fc1 = f"{MLP}.linear_fc1.{kind}"
        if fused_gate_up is not None:
            gate_up = f"{hf}.{fused_gate_up}.{kind}"
            mappings.append(param_mapping.FusedGatedMLPMapping(fc1, gate_up, order=fused_order, transposed=transposed))
        else:
            mappings.append(param_mapping.GatedMLPMapping(fc1, gate=gate, up=up))
        mapping = param_mapping.TransposedMapping if transposed and kind == "weight" else param_mapping.AutoMapping
        mappings.append(mapping(f"{MLP}.linear_fc2.{kind}", down))
    return mappings


def mlp(
    *,
    hf: str = "model.layers.*.mlp",
    up: str = "up_proj",
    down: str = "down_proj",
    bias: bool = False,
    transposed: bool = False,
) -> Mappings:
    """MLP of two layers, without a gate.

    Args:
        up, down: their HF names.
        bias: whether they have biases.
        transposed: whether their weights are `[in, out]`.
    """
    return [
        (param_mapping.TransposedMapping if transposed and kind == "weight" else param_mapping.AutoMapping)(
            f"{MLP}.{megatron}.{kind}", f"{hf}.{name}.{kind}"
        )
        for megatron, name in (("linear_fc1", up), ("linear_fc2", down))
        for kind in kinds(bias)
    ]
