"""GLM-4.5 and GLM-4.6."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Glm4MoeForCausalLM", target="GPTModel", model_type="glm4_moe")
class Glm4MoeBridge(MegatronModelBridge):
    """Grouped-query attention with a partial rotary embedding, and DeepSeek-V3's experts."""

    CONFIG = (
        *fields.DECODER,
        fields.PARTIAL_ROPE,
        *fields.DEEPSEEK_EXPERTS,
        fields.PREDICTION_LAYERS,
        fields.same(attention_bias="add_qkv_bias", use_qk_norm="qk_layernorm"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        layer = [
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, qk_norm=config.use_qk_norm),
            *blocks.moe(router_bias="gate.e_score_correction_bias", shared="shared_experts"),
        ]
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *layer,
            *blocks.gated_mlp(),
            *blocks.multi_token_prediction(layer, config),
        )
