"""LFM2, dense and with experts."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields

_MLP_SIZE_RULE = (
    "intermediate_size", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of",
)  # fmt: skip


def _mlp_size(
    intermediate_size: int, block_auto_adjust_ff_dim: bool, block_ffn_dim_multiplier: float, block_multiple_of: int
) -> int:
    """The width of the MLP, computed from the HF fields of these names (transformers 5.23, `Lfm2MLP`)."""
    if not block_auto_adjust_ff_dim:
        return intermediate_size
    size = int(block_ffn_dim_multiplier * int(2 * intermediate_size / 3))
    return (size + block_multiple_of - 1) // block_multiple_of * block_multiple_of


def _mlp_fields(hf_config: fields.HFConfig) -> fields.Values:
    rule = {name: getattr(hf_config, name) for name in _MLP_SIZE_RULE}
    return {"mlp_size_rule": rule, "ffn_hidden_size": _mlp_size(**rule)}


def _mlp_values(provider: fields.Provider) -> fields.Values:
    rule = provider.mlp_size_rule
    if rule is None or _mlp_size(**rule) != provider.ffn_hidden_size:
        return {"intermediate_size": provider.ffn_hidden_size, "block_auto_adjust_ff_dim": False}
    return dict(rule)


class _ShortConvBridge(MegatronModelBridge):
    """Attention with norms of q and k in some layers, a gated short convolution in the others, and gated MLPs."""

    PROVIDER_CLASS = "megatron.bridge.models.lfm2.modeling_lfm2.Lfm2Provider"
    CONFIG = (
        *fields.decoder(rms_norm_eps="norm_eps", hidden_act=None, attention_dropout=None),
        fields.same("conv_bias", conv_L_cache="conv_kernel_size"),
        fields.linear_attention("conv"),
        fields.not_read("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale"),
        fields.not_read(
            "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta"
        ),
        fields.fixed(attention_dropout=0.0, block_use_swiglu=True, use_pos_enc=True),
        fields.defaults(activation_func="silu", attention_dropout=0.0, qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, norm="embedding_norm"),
            *blocks.pre_norms(attention="operator_norm", mlp="ffn_norm"),
            *blocks.short_convolution(config.hidden_size, bias=config.conv_bias),
            *blocks.attention(qk_norm=True, qk_norm_names=("q_layernorm", "k_layernorm"), output="out_proj"),
            *blocks.gated_mlp(hf="model.layers.*.feed_forward", names=("w1", "w3", "w2")),
        )


@MegatronModelBridge.register_bridge(source="Lfm2ForCausalLM", target="GPTModel", model_type="lfm2")
class Lfm2Bridge(_ShortConvBridge):
    """Dense layers, whose width may have to be computed from the config's by a rule."""

    CONFIG = (
        *_ShortConvBridge.CONFIG,
        fields.Part(reads=_MLP_SIZE_RULE, to_provider=_mlp_fields, to_hf=_mlp_values),
        fields.turned_into("layer_types", "full_attn_idxs"),
    )


@MegatronModelBridge.register_bridge(source="Lfm2MoeForCausalLM", target="GPTModel", model_type="lfm2_moe")
class Lfm2MoeBridge(_ShortConvBridge):
    """Experts chosen by sigmoid scores with a bias, in all layers but the first."""

    CONFIG = (
        *_ShortConvBridge.CONFIG,
        *fields.biased_experts(),
        fields.expert_layers("num_dense_layers"),
        fields.same(norm_topk_prob="moe_router_renormalize", use_expert_bias="moe_router_enable_expert_bias"),
        fields.ROUTER_IN_FP32,
        fields.defaults(moe_router_score_function="sigmoid", moe_router_epsilon=1e-6),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        experts = blocks.moe(
            hf="model.layers.*.feed_forward",
            router_bias="expert_bias" if self.hf_config.use_expert_bias else None,
            names=("w1", "w3", "w2"),
        )
        return MegatronMappingRegistry(*super().mapping_registry().entries, *experts)
