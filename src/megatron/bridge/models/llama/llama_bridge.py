"""Llama 2 and 3.x, and every model published under the same architecture (SmolLM2, TinyLlama, ...)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="LlamaForCausalLM", target="GPTModel", model_type="llama")
class LlamaBridge(MegatronModelBridge):
    """A pre-norm decoder with grouped-query attention and a gated MLP; all biases are optional."""

    CONFIG = (*fields.DECODER, fields.ATTENTION_BIAS, fields.same("mlp_bias"))

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, output_bias=config.attention_bias),
            *blocks.gated_mlp(bias=config.mlp_bias),
        )
