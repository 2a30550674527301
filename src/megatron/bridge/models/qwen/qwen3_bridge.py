"""Qwen3 (dense)."""

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="Qwen3ForCausalLM", target="GPTModel", model_type="qwen3")
class Qwen3Bridge(MegatronModelBridge):
    """Like Qwen2, with norms of q and k over each head, and biases in attention only if the config says so."""

    CONFIG_MAPPING = {**MegatronModelBridge.CONFIG_MAPPING, **config_mapping.ATTENTION_BIAS}
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "sliding_window", "use_sliding_window", "layer_types")
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "qk_layernorm": True}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
        )
