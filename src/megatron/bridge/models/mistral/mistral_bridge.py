"""Mistral (text)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="MistralForCausalLM", target="GPTModel", model_type="mistral")
class MistralBridge(MegatronModelBridge):
    """Like Llama without biases, with a sliding window on all layers if the config says so."""

    CONFIG = (*fields.DECODER, fields.WINDOW)

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(),
            *blocks.gated_mlp(),
        )
