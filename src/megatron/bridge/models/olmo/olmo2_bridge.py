"""OLMo 2."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Olmo2ForCausalLM", target="GPTModel", model_type="olmo2")
class Olmo2Bridge(MegatronModelBridge):
    """Norms behind attention and MLP instead of in front of them, and norms of q and k over all heads together."""

    CONFIG = (
        *fields.DECODER,
        fields.ATTENTION_BIAS,
        fields.defaults(norm_weight_in_fp32=True, use_pre_norms=False, use_post_norms=True),
        fields.defaults(qk_layernorm=True, qk_layernorm_scope="projection"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.post_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
        )
