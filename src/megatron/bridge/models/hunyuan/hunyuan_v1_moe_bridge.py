"""HunYuan V1 mixture of experts (Hunyuan-A13B)."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.hunyuan.hunyuan_v1_dense_bridge import HunYuanDenseV1Bridge


def _router_fields(hf_config: fields.HFConfig) -> fields.Values:
    topk = hf_config.moe_topk
    counts = set(topk) if isinstance(topk, list) else {topk}
    if len(counts) > 1:
        raise UnsupportedConfigError(f"moe_topk {topk}: every layer must choose the same number of experts")
    [topk] = counts
    return {**fields.softmax_router_fields(True, topk), "moe_router_topk": topk}


@MegatronModelBridge.register_bridge(source="HunYuanMoEV1ForCausalLM", target="GPTModel", model_type="hunyuan_v1_moe")
class HunYuanMoEV1Bridge(HunYuanDenseV1Bridge):
    """Like HunYuan V1, with experts, and a shared expert of the same width, in every layer."""

    CONFIG = (
        *HunYuanDenseV1Bridge.CONFIG,
        fields.experts(num_experts_per_tok=None, moe_intermediate_size=None, router_aux_loss_coef=None),
        fields.same(intermediate_size=("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size")),
        fields.Part(
            reads=("moe_topk",),
            to_provider=_router_fields,
            to_hf=lambda provider: {"moe_topk": provider.moe_router_topk},
        ),
        fields.not_read("capacity_factor", "moe_drop_tokens", "moe_intermediate_size", "moe_layer_num_skipped"),
        fields.not_read("moe_random_routing_dropped_token", "num_shared_expert", "use_mixed_mlp_moe"),
        fields.ROUTER_IN_FP32,
        fields.defaults(moe_aux_loss_coeff=1e-3),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *super().mapping_registry().entries, *blocks.moe(router="gate.wg", shared="shared_mlp")
        )
