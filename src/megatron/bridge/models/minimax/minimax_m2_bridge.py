"""MiniMax-M2."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="MiniMaxM2ForCausalLM", target="GPTModel", model_type="minimax_m2")
class MiniMaxM2Bridge(MegatronModelBridge):
    """Norms of q and k over all heads together, and experts chosen by biased sigmoid scores."""

    CONFIG = (
        *fields.DECODER,
        fields.PARTIAL_ROPE,
        fields.LOCAL_EXPERTS,
        fields.irrelevant("training", "router_jitter_noise"),
        fields.irrelevant("transformers puts it into rope_parameters", "rotary_dim"),
        fields.not_read("layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta"),
        fields.not_read("attn_type_list", "mlp_intermediate_size", "shared_intermediate_size", "shared_moe_mode"),
        fields.not_read("mtp_transformer_layers", "num_mtp_modules", "use_mtp", "qk_norm_type", "use_qk_norm"),
        fields.fixed(scoring_func="sigmoid", use_routing_bias=True),
        fields.defaults(qk_layernorm=True, qk_layernorm_scope="projection"),
        fields.defaults(moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.moe(
                hf="model.layers.*.block_sparse_moe", router_bias="e_score_correction_bias", names=("w1", "w3", "w2")
            ),
        )
