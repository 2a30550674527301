"""Gemma."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import GemmaConfig


@MegatronModelBridge.register_bridge(source="GemmaForCausalLM", target="GPTModel", model_type="gemma")
class GemmaBridge(MegatronModelBridge):
    """Zero-centred norms, and embeddings multiplied by the root of the hidden size."""

    CONFIG_MAPPING = {**MegatronModelBridge.CONFIG_MAPPING, **config_mapping.ATTENTION_BIAS}
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "use_bidirectional_attention")
    CONFIG_IRRELEVANT = config_mapping.not_read("hidden_activation")
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "layernorm_zero_centered_gamma": True}

    def hf_config_to_provider_kwargs(self, hf_config: "GemmaConfig") -> dict[str, Any]:
        config_mapping.check_values(hf_config, self._where(hf_config), use_bidirectional_attention=(None, False))
        fields = super().hf_config_to_provider_kwargs(hf_config)
        return {**fields, "embedding_multiplier": sqrt(hf_config.hidden_size)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(),
        )
