"""OLMoE."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="OlmoeForCausalLM", target="GPTModel", model_type="olmoe")
class OlmoeBridge(MegatronModelBridge):
    """Norms of q and k over all heads together, and experts in every layer."""

    CONFIG = (
        *fields.decoder(head_dim=None),
        fields.USUAL_HEAD_DIM,
        fields.ATTENTION_BIAS,
        fields.experts(moe_intermediate_size="intermediate_size"),
        fields.SOFTMAX_ROUTER,
        fields.fixed(clip_qkv=None),
        fields.defaults(qk_layernorm=True, qk_layernorm_scope="projection"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.moe(),
        )
