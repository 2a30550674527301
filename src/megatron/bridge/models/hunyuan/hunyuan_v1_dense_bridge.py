"""HunYuan V1 (dense)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(
    source="HunYuanDenseV1ForCausalLM", target="GPTModel", model_type="hunyuan_v1_dense"
)
class HunYuanDenseV1Bridge(MegatronModelBridge):
    """Like Llama, with norms of q and k behind the rotary embedding, whose base `alpha` may stretch."""

    CONFIG = (
        *fields.DECODER,
        fields.ATTENTION_BIAS,
        fields.ALPHA_ROPE,
        fields.not_read(
            "eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "pad_id", "sep_token_id"
        ),
        fields.not_read(
            "text_end_id", "text_start_id", "add_classification_head", "class_num", "dense_list", "pool_type"
        ),
        fields.not_read("attention_head_dim", "cla_share_factor", "mlp_bias", "norm_type", "org_vocab_size", "use_cla"),
        fields.not_read("use_qk_norm", "use_rotary_pos_emb"),
        fields.defaults(qk_layernorm=True, qk_layernorm_scope="head_after_rope"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(
                qkv_bias=bias, output_bias=bias, qk_norm=True, qk_norm_names=("query_layernorm", "key_layernorm")
            ),
            *blocks.gated_mlp(),
        )
