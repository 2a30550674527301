"""The mappings that Gemma 4 alone has."""

from typing import Any

from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.param_mapping import AutoMapping, MegatronParamMapping

HF_LAYER = "model.layers.*"


def experts() -> blocks.Mappings:
    """Router, experts, the dense MLP beside them, and their norms."""
    names = {
        "pre_dense_layernorm.weight": "pre_feedforward_layernorm.weight",
        "post_dense_layernorm.weight": "post_feedforward_layernorm_1.weight",
        "pre_experts_layernorm.weight": "pre_feedforward_layernorm_2.weight",
        "post_experts_layernorm.weight": "post_feedforward_layernorm_2.weight",
        "router.scale": "router.scale",
        "router.per_expert_scale": "router.per_expert_scale",
    }
    return [
        *(AutoMapping(f"{blocks.LAYER}.mlp.{ours}", f"{HF_LAYER}.{theirs}") for ours, theirs in names.items()),
        *blocks.fused_moe(hf=HF_LAYER, router="router.proj", shared="mlp"),
    ]


class FullAttentionQKVMapping(MegatronParamMapping):
    """`linear_qkv` of a layer with full attention: its own heads, and no rows of v where the values are the keys."""

    def __init__(self, layer: int, roles: tuple[str, ...], kind: str):
        names = {role: f"model.layers.{layer}.self_attn.{role}_proj.{kind}" for role in roles}
        super().__init__(f"decoder.layers.{layer}.self_attention.linear_qkv.{kind}", names)

    def layout(self, shape: layouts.Shape, config: Any) -> layouts.Layout:
        head_dim, num_groups = config.full_kv_channels, config.full_num_query_groups
        rows = dict.fromkeys(self.hf_names, head_dim) | {"q": config.num_attention_heads // num_groups * head_dim}
        return layouts.grouped_rows(shape, num_groups, rows)
