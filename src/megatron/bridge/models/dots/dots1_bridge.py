"""dots.llm1."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Dots1Config


@MegatronModelBridge.register_bridge(source="Dots1ForCausalLM", target="GPTModel", model_type="dots1")
class Dots1Bridge(MegatronModelBridge):
    """Qwen3's attention, and DeepSeek-V3's experts."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **moe_config.DEEPSEEK_FIELDS,
        **config_mapping.ATTENTION_BIAS,
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *moe_config.EXPERT_LAYER_FIELDS,
        *moe_config.GROUPED_SIGMOID_FIELDS,
        *("sliding_window", "layer_types"),
    )
    CONFIG_IRRELEVANT = {"output_router_logits": "what the HF model returns"}
    CONFIG_FIXED = {"scoring_func": "noaux_tc", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "qk_layernorm": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Dots1Config") -> dict[str, Any]:
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.grouped_sigmoid_fields(hf_config),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **moe_config.grouped_sigmoid_values(provider),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias=blocks.DEEPSEEK_ROUTER_BIAS, shared="shared_experts"),
        )
