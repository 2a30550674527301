"""Arcee (AFM)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.llama.llama_bridge import LlamaBridge


@MegatronModelBridge.register_bridge(source="ArceeForCausalLM", target="GPTModel", model_type="arcee")
class ArceeBridge(LlamaBridge):
    """Like Llama, with a squared ReLU instead of a gate in the MLP."""

    CONFIG = (*LlamaBridge.CONFIG, fields.defaults(gated_linear_unit=False))

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, output_bias=config.attention_bias),
            *blocks.mlp(bias=config.mlp_bias),
        )
