"""OLMoE."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import OlmoeConfig


@MegatronModelBridge.register_bridge(source="OlmoeForCausalLM", target="GPTModel", model_type="olmoe")
class OlmoeBridge(MegatronModelBridge):
    """Norms of q and k over all heads together, and experts in every layer."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **config_mapping.ATTENTION_BIAS,
        **{hf: ours for hf, ours in moe_config.MOE_FIELDS.items() if hf != "moe_intermediate_size"},
        "intermediate_size": "moe_ffn_hidden_size",
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "norm_topk_prob")
    CONFIG_IRRELEVANT = {"output_router_logits": "what the HF model returns"}
    CONFIG_FIXED = {"clip_qkv": None}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "qk_layernorm": True,
        "qk_layernorm_scope": "projection",
    }

    def hf_config_to_provider_kwargs(self, hf_config: "OlmoeConfig") -> dict[str, Any]:
        router = moe_config.softmax_router_fields(hf_config.norm_topk_prob, hf_config.num_experts_per_tok)
        return {**super().hf_config_to_provider_kwargs(hf_config), **router}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), "norm_topk_prob": moe_config.is_renormalized(provider)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.moe(),
        )
