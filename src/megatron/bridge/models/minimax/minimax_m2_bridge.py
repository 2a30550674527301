"""MiniMax-M2."""

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="MiniMaxM2ForCausalLM", target="GPTModel", model_type="minimax_m2")
class MiniMaxM2Bridge(MegatronModelBridge):
    """Norms of q and k over all heads together, and experts chosen by biased sigmoid scores."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        "intermediate_size": "moe_ffn_hidden_size",
        "num_local_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
    }
    CONFIG_IRRELEVANT = {
        "output_router_logits": "what the HF model returns",
        "router_jitter_noise": "training",
        "rotary_dim": "transformers puts it into rope_parameters",
        **config_mapping.not_read(
            "attn_type_list", "layernorm_full_attention_beta", "layernorm_linear_attention_beta",
            "layernorm_mlp_beta", "mlp_intermediate_size", "mtp_transformer_layers", "num_mtp_modules", "qk_norm_type",
            "shared_intermediate_size", "shared_moe_mode", "use_mtp", "use_qk_norm",
        ),
    }  # fmt: skip
    CONFIG_FIXED = {"scoring_func": "sigmoid", "use_routing_bias": True}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "qk_layernorm": True,
        "qk_layernorm_scope": "projection",
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    }

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.moe(
                hf=blocks.BLOCK_SPARSE_MOE, router_bias="e_score_correction_bias", names=blocks.NUMBERED_EXPERT
            ),
        )
