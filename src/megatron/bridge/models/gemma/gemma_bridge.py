"""Gemma."""

from math import sqrt

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields

SCALED_EMBEDDINGS = fields.Part(to_provider=lambda hf_config: {"embedding_multiplier": sqrt(hf_config.hidden_size)})


@MegatronModelBridge.register_bridge(source="GemmaForCausalLM", target="GPTModel", model_type="gemma")
class GemmaBridge(MegatronModelBridge):
    """Zero-centred norms, and embeddings multiplied by the square root of the hidden size."""

    CONFIG = (
        *fields.DECODER,
        fields.ATTENTION_BIAS,
        SCALED_EMBEDDINGS,
        fields.fixed(use_bidirectional_attention=False),
        fields.not_read("hidden_activation"),
        fields.defaults(layernorm_zero_centered_gamma=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(),
        )
