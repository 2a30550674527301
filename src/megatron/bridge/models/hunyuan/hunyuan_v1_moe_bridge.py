"""HunYuan V1 mixture of experts (Hunyuan-A13B)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.hunyuan.hunyuan_v1_dense_bridge import HunYuanDenseV1Bridge

if TYPE_CHECKING:
    from transformers import HunYuanMoEV1Config


@MegatronModelBridge.register_bridge(source="HunYuanMoEV1ForCausalLM", target="GPTModel", model_type="hunyuan_v1_moe")
class HunYuanMoEV1Bridge(HunYuanDenseV1Bridge):
    """HunYuan V1 with experts and a shared expert of the same width in every layer."""

    CONFIG_MAPPING = {
        **HunYuanDenseV1Bridge.CONFIG_MAPPING,
        "intermediate_size": ("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
        "num_experts": "num_moe_experts",
    }
    CONFIG_CHECKED = (*HunYuanDenseV1Bridge.CONFIG_CHECKED, "moe_topk")
    CONFIG_IRRELEVANT = {
        **HunYuanDenseV1Bridge.CONFIG_IRRELEVANT,
        "output_router_logits": "what the HF model returns",
        **config_mapping.not_read(
            "capacity_factor", "moe_drop_tokens", "moe_intermediate_size", "moe_layer_num_skipped",
            "moe_random_routing_dropped_token", "num_shared_expert", "use_mixed_mlp_moe",
        ),
    }  # fmt: skip
    CONFIG_DEFAULTS = {
        **HunYuanDenseV1Bridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "moe_router_dtype": "fp32",
        "moe_aux_loss_coeff": 1e-3,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "HunYuanMoEV1Config") -> dict[str, Any]:
        topk = hf_config.moe_topk
        counts = set(topk) if isinstance(topk, list) else {topk}
        if len(counts) > 1:
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: moe_topk {topk}: every layer must choose the same number of experts"
            )
        [topk] = counts
        router = moe_config.softmax_router_fields(True, topk)
        return {**super().hf_config_to_provider_kwargs(hf_config), **router, "moe_router_topk": topk}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), "moe_topk": provider.moe_router_topk}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *super().mapping_registry().entries, *blocks.moe(router="gate.wg", shared="shared_mlp")
        )
