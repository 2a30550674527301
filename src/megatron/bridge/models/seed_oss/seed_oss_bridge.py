"""Seed-OSS."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="SeedOssForCausalLM", target="GPTModel", model_type="seed_oss")
class SeedOssBridge(MegatronModelBridge):
    """Like Llama, with a separate switch for each bias, and dropout after attention and MLP."""

    CONFIG = (
        *fields.DECODER,
        fields.same("mlp_bias", attention_bias="add_qkv_bias", attention_out_bias="attention_output_bias"),
        fields.same(residual_dropout="hidden_dropout"),
        fields.defaults(embedding_dropout=0.0),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, output_bias=config.attention_out_bias),
            *blocks.gated_mlp(bias=config.mlp_bias),
        )
