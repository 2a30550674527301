"""Qwen2 and Qwen2.5."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Qwen2ForCausalLM", target="GPTModel", model_type="qwen2")
class Qwen2Bridge(MegatronModelBridge):
    """Like Llama, with biases on q, k and v, and a sliding window on some layers if the config says so."""

    CONFIG = (*fields.DECODER, fields.SWITCHED_WINDOW_LAYERS, fields.defaults(add_qkv_bias=True))

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=True),
            *blocks.gated_mlp(),
        )
