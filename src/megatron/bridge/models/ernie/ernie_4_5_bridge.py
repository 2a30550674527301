"""ERNIE 4.5 (dense)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Ernie4_5ForCausalLM", target="GPTModel", model_type="ernie4_5")
class Ernie45Bridge(MegatronModelBridge):
    """Like Llama, with one switch for all biases, and rope that rotates neighbouring dimensions."""

    CONFIG = (
        *fields.DECODER,
        fields.same(use_bias="add_bias_linear"),
        fields.defaults(rotary_interleaved=True, attention_dropout=0.0),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.use_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(bias=bias),
        )
