"""Ling 2.0 and Ring 2.0, whose config class comes with the model."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="BailingMoeV2ForCausalLM", target="GPTModel", model_type="bailing_moe")
class BailingMoeV2Bridge(MegatronModelBridge):
    """Grouped-query attention with norms of q and k and a partial rotary embedding, and DeepSeek-V3's experts."""

    CONFIG = (
        *fields.decoder(rope_parameters=None),
        fields.OLDER_ROPE,
        *fields.biased_experts(),
        fields.expert_layers("first_k_dense_replace", "num_shared_experts"),
        fields.GROUPED_SIGMOID_ROUTER,
        fields.same(use_qkv_bias="add_qkv_bias", use_qk_norm="qk_layernorm"),
        fields.irrelevant("the published code reads num_shared_experts", "moe_shared_expert_intermediate_size"),
        fields.irrelevant("scores are in fp32", "router_dtype"),
        fields.fixed(
            use_bias=False, use_rmsnorm=True, embedding_dropout=0.0, output_dropout=0.0, use_sliding_window=False
        ),
        fields.fixed(moe_router_enable_expert_bias=True, score_function="sigmoid"),
        fields.fixed(rope_scaling=None, num_nextn_predict_layers=0, mtp_loss_scaling_factor=0),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, embedding="word_embeddings"),
            *blocks.pre_norms(),
            *blocks.attention(
                hf="model.layers.*.attention",
                qkv_bias=config.use_qkv_bias,
                qk_norm=config.use_qk_norm,
                qk_norm_names=("query_layernorm", "key_layernorm"),
                fused_qkv="query_key_value",
                output="dense",
            ),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="gate.expert_bias", shared="shared_experts"),
        )
