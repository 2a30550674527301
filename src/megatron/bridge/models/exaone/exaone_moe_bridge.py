"""EXAONE mixture of experts."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="ExaoneMoeForCausalLM", target="GPTModel", model_type="exaone_moe")
class ExaoneMoeBridge(MegatronModelBridge):
    """Layers with a window and rope, among layers with neither, and DeepSeek-V3's experts."""

    CONFIG = (
        *fields.DECODER,
        *fields.biased_experts(),
        fields.expert_layers("first_k_dense_replace", "mlp_layer_types", "num_shared_experts"),
        fields.GROUPED_SIGMOID_ROUTER,
        fields.WINDOW_LAYERS,
        fields.ROPE_IN_WINDOWS,
        fields.irrelevant("transformers does not compute with it", "num_nextn_predict_layers"),
        fields.fixed(scoring_func="sigmoid", topk_method="noaux_tc"),
        fields.defaults(qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="e_score_correction_bias", shared="shared_experts"),
            *blocks.no_multi_token_prediction(),
        )
