"""The norms of a layer."""

from megatron.bridge.models.conversion.blocks.names import LAYER, Mappings, kinds
from megatron.bridge.models.conversion.param_mapping import AutoMapping


def pre_norms(
    *,
    hf: str = "model.layers.*",
    attention: str | None = "input_layernorm",
    mlp: str | None = "post_attention_layernorm",
    bias: bool = False,
) -> Mappings:
    """The norms in front of attention and MLP, by their HF names; `None` for one that the layer lacks."""
    norms = (("self_attention.linear_qkv", attention), ("mlp.linear_fc1", mlp))
    return [
        AutoMapping(f"{LAYER}.{megatron}.layer_norm_{kind}", f"{hf}.{name}.{kind}")
        for megatron, name in norms
        if name is not None
        for kind in kinds(bias)
    ]


def post_norms(
    *, hf: str = "model.layers.*", attention: str = "post_attention_layernorm", mlp: str = "post_feedforward_layernorm"
) -> Mappings:
    """The norms behind attention and MLP, before the residual addition."""
    return [
        AutoMapping(f"{LAYER}.self_attention.linear_proj.post_layernorm.weight", f"{hf}.{attention}.weight"),
        AutoMapping(f"{LAYER}.mlp.linear_fc2.post_layernorm.weight", f"{hf}.{mlp}.weight"),
    ]
