"""GLM-4.5 and GLM-4.6."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Glm4MoeConfig


@MegatronModelBridge.register_bridge(source="Glm4MoeForCausalLM", target="GPTModel", model_type="glm4_moe")
class Glm4MoeBridge(MegatronModelBridge):
    """Grouped-query attention with partial rotary embedding, and DeepSeek-V3's experts."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **moe_config.DEEPSEEK_FIELDS,
        "attention_bias": "add_qkv_bias",
        "use_qk_norm": "qk_layernorm",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *moe_config.EXPERT_LAYER_FIELDS,
        *moe_config.GROUPED_SIGMOID_FIELDS,
        "num_nextn_predict_layers",
    )
    CONFIG_IRRELEVANT = {"output_router_logits": "what the HF model returns"}
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, **moe_config.BIASED_ROUTER_DEFAULTS}

    def hf_config_to_provider_kwargs(self, hf_config: "Glm4MoeConfig") -> dict[str, Any]:
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.grouped_sigmoid_fields(hf_config),
            **moe_config.mtp_fields(hf_config),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **moe_config.grouped_sigmoid_values(provider),
            **moe_config.mtp_values(provider),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        layer = [
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, qk_norm=config.use_qk_norm),
            *blocks.moe(router_bias=blocks.DEEPSEEK_ROUTER_BIAS, shared="shared_experts"),
        ]
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *layer,
            *blocks.gated_mlp(),
            *blocks.multi_token_prediction(layer, config),
        )
