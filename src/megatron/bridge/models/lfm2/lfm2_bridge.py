"""LFM2, dense and with experts."""

from typing import Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

_MLP_SIZE_RULE = (
    "intermediate_size", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of",
)  # fmt: skip


class _ShortConvBridge(MegatronModelBridge):
    """Attention with norms of q and k in some layers, a gated short convolution in the others, and a gated MLP."""

    PROVIDER_CLASS = "megatron.bridge.models.lfm2.modeling_lfm2.Lfm2Provider"
    CONFIG_MAPPING = {
        **config_mapping.decoder_fields(rms_norm_eps="norm_eps"),
        "conv_L_cache": "conv_kernel_size",
        "conv_bias": "conv_bias",
    }
    CONFIG_CHECKED = ("rope_parameters", "layer_types")
    CONFIG_IRRELEVANT = config_mapping.not_read(
        "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_xavier_init",
        "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta",
    )  # fmt: skip
    CONFIG_FIXED = {"attention_dropout": 0.0, "block_use_swiglu": True, "use_pos_enc": True}
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "attention_dropout": 0.0, "qk_layernorm": True}

    def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
        where = self._where(hf_config)
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **config_mapping.linear_attention_fields(hf_config, where, linear="conv"),
            "activation_func": config_mapping.activation_function("silu", where),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.linear_attention_values(provider, linear="conv"),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, norm="embedding_norm"),
            *blocks.pre_norms(attention="operator_norm", mlp="ffn_norm"),
            *blocks.short_convolution(config.hidden_size, bias=config.conv_bias),
            *blocks.attention(qk_norm=True, qk_norm_names=blocks.QK_LAYERNORM_NAMES, output="out_proj"),
            *blocks.gated_mlp(hf=blocks.FEED_FORWARD, names=blocks.NUMBERED_EXPERT),
        )


@MegatronModelBridge.register_bridge(source="Lfm2ForCausalLM", target="GPTModel", model_type="lfm2")
class Lfm2Bridge(_ShortConvBridge):
    """The size of the MLP may be computed from the config's by a rule of its own."""

    CONFIG_CHECKED = (*_ShortConvBridge.CONFIG_CHECKED, *_MLP_SIZE_RULE)
    CONFIG_IRRELEVANT = {
        **_ShortConvBridge.CONFIG_IRRELEVANT,
        "full_attn_idxs": "transformers turns it into layer_types",
    }

    def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
        rule = {name: getattr(hf_config, name) for name in _MLP_SIZE_RULE}
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "mlp_size_rule": rule,
            "ffn_hidden_size": _mlp_size(**rule),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        rule = provider.mlp_size_rule
        if rule is None or _mlp_size(**rule) != provider.ffn_hidden_size:
            rule = {"block_auto_adjust_ff_dim": False}
        return {**super().megatron_to_hf_config(provider), **rule}


@MegatronModelBridge.register_bridge(source="Lfm2MoeForCausalLM", target="GPTModel", model_type="lfm2_moe")
class Lfm2MoeBridge(_ShortConvBridge):
    """Experts chosen by sigmoid scores with a bias, in all layers but the first."""

    CONFIG_MAPPING = {
        **_ShortConvBridge.CONFIG_MAPPING,
        **{hf: ours for hf, ours in moe_config.MOE_FIELDS.items() if hf != "router_aux_loss_coef"},
        "norm_topk_prob": "moe_router_renormalize",
        "routed_scaling_factor": "moe_router_topk_scaling_factor",
        "use_expert_bias": "moe_router_enable_expert_bias",
    }
    CONFIG_CHECKED = (*_ShortConvBridge.CONFIG_CHECKED, "num_dense_layers")
    CONFIG_IRRELEVANT = {**_ShortConvBridge.CONFIG_IRRELEVANT, "output_router_logits": "what the HF model returns"}
    CONFIG_DEFAULTS = {
        **_ShortConvBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "moe_router_score_function": "sigmoid",
        "moe_router_dtype": "fp32",
        "moe_router_epsilon": 1e-6,
    }

    def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
        return {**super().hf_config_to_provider_kwargs(hf_config), **moe_config.expert_layer_fields(hf_config)}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        experts = blocks.moe(
            hf=blocks.FEED_FORWARD,
            router_bias="expert_bias" if self.hf_config.use_expert_bias else None,
            names=blocks.NUMBERED_EXPERT,
        )
        return MegatronMappingRegistry(*super().mapping_registry().entries, *experts)


def _mlp_size(
    intermediate_size: int, block_auto_adjust_ff_dim: bool, block_ffn_dim_multiplier: float, block_multiple_of: int
) -> int:
    """The rows of an MLP's gate for the HF fields of these names (transformers 5.23, `Lfm2MLP`)."""
    if not block_auto_adjust_ff_dim:
        return intermediate_size
    size = int(block_ffn_dim_multiplier * int(2 * intermediate_size / 3))
    return (size + block_multiple_of - 1) // block_multiple_of * block_multiple_of
