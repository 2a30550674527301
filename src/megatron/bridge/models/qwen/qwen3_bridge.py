"""Qwen3 (dense)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Qwen3ForCausalLM", target="GPTModel", model_type="qwen3")
class Qwen3Bridge(MegatronModelBridge):
    """Like Qwen2, with norms of q and k over each head, and biases in attention only if the config says so."""

    CONFIG = (*fields.DECODER, fields.ATTENTION_BIAS, fields.SWITCHED_WINDOW_LAYERS, fields.defaults(qk_layernorm=True))

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
        )
