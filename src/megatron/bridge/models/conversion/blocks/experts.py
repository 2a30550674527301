"""Mixtures of experts."""

from megatron.bridge.models.conversion.blocks.names import LAYER, MLP, Mappings
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    FusedExpertMapping,
    FusedGatedExpertMapping,
    GatedMLPMapping,
)


def moe(
    *,
    hf: str = "model.layers.*.mlp",
    router: str = "gate",
    router_bias: str | None = None,
    experts: str = "experts",
    names: tuple[str | None, str, str] = ("gate_proj", "up_proj", "down_proj"),
    shared: str | None = None,
    shared_gate: str | None = None,
) -> Mappings:
    """Mixture of experts, stored as separate tensors for each expert.

    Args:
        router: HF name of the router, below `hf`.
        router_bias: HF name of the bias that is added to the scores when experts are chosen.
        experts: HF name of the list of experts.
        names: HF names of an expert's gate, up and down projections; `None` if it has no gate.
        shared: HF name of the shared expert, if there is one.
        shared_gate: HF name of the projection that gates the shared expert.

    Example:
        >>> moe(hf="model.layers.*.block_sparse_moe", names=("w1", "w3", "w2"))[0]
        AutoMapping('decoder.layers.*.mlp.router.weight', 'model.layers.*.block_sparse_moe.gate.weight')
    """
    megatron = MLP
    mappings: Mappings = [
        AutoMapping(f"{megatron}.router.weight", f"{hf}.{router}.weight"),
        *_two_layers(f"{megatron}.experts", f"{hf}.{experts}.*", names, expert="*"),
    ]
    if router_bias is not None:
        mappings.append(AutoMapping(f"{megatron}.router.expert_bias", f"{hf}.{router_bias}"))
    if shared is not None:
        mappings += _shared_expert(f"{hf}.{shared}", names)
    if shared_gate is not None:
        mappings.append(AutoMapping(f"{megatron}.shared_experts.gate_weight", f"{hf}.{shared_gate}.weight"))
    return mappings


def fused_moe(
    *,
    hf: str = "model.layers.*.mlp",
    router: str = "router",
    gate_up: str = "experts.gate_up_proj",
    down: str = "experts.down_proj",
    bias: bool = False,
    transposed: bool = False,
    interleaved: bool = False,
    shared: str | None = None,
) -> Mappings:
    """Mixture of gated experts, stored as one tensor for all experts of a layer.

    Args:
        router: HF name of the router, below `hf`.
        gate_up, down: HF names of the experts' projections.
        bias: whether router and experts have biases; those of the experts have the weights' names plus `_bias`.
        transposed: whether an expert's weight is `[in, out]`.
        interleaved: whether the outputs of gate and up alternate.
        shared: HF name of the shared expert, if there is one.
    """
    megatron = MLP
    mappings: Mappings = [] if shared is None else _shared_expert(f"{hf}.{shared}")
    for kind, suffix in (("weight", ""), ("bias", "_bias")) if bias else (("weight", ""),):
        layout = {"transposed": transposed and kind == "weight"}
        mappings += [
            AutoMapping(f"{megatron}.router.{kind}", f"{hf}.{router}.{kind}"),
            FusedGatedExpertMapping(
                f"{megatron}.experts.linear_fc1.{kind}*", f"{hf}.{gate_up}{suffix}", interleaved=interleaved, **layout
            ),
            FusedExpertMapping(f"{megatron}.experts.linear_fc2.{kind}*", f"{hf}.{down}{suffix}", **layout),
        ]
    return mappings


def _shared_expert(hf: str, names: tuple[str | None, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Mappings:
    return _two_layers(f"{LAYER}.mlp.shared_experts", hf, names)


def _two_layers(megatron: str, hf: str, names: tuple[str | None, str, str], expert: str = "") -> Mappings:
    """The weights of an expert's MLP: `linear_fc1`, with the gate if there is one, and `linear_fc2`."""
    gate, up, down = names
    fc1, hf_up = f"{megatron}.linear_fc1.weight{expert}", f"{hf}.{up}.weight"
    return [
        AutoMapping(fc1, hf_up) if gate is None else GatedMLPMapping(fc1, gate=f"{hf}.{gate}.weight", up=hf_up),
        AutoMapping(f"{megatron}.linear_fc2.weight{expert}", f"{hf}.{down}.weight"),
    ]
