"""Ling 2.0 and Ring 2.0, whose config class is the model's own code."""

from typing import Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="BailingMoeV2ForCausalLM", target="GPTModel", model_type="bailing_moe")
class BailingMoeV2Bridge(MegatronModelBridge):
    """Grouped-query attention with norms of q and k and partial rotary embedding, and DeepSeek-V3's experts."""

    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in config_mapping.DECODER_FIELDS.items() if hf != "rope_parameters"},
        "num_experts_per_tok": "moe_router_topk",
        "num_experts": "num_moe_experts",
        "moe_intermediate_size": "moe_ffn_hidden_size",
        "routed_scaling_factor": "moe_router_topk_scaling_factor",
        "use_qkv_bias": "add_qkv_bias",
        "use_qk_norm": "qk_layernorm",
    }
    CONFIG_CHECKED = (
        *("hidden_act", "rope_theta", "partial_rotary_factor", "rope_parameters"),
        *("first_k_dense_replace", "num_shared_experts"),
        *moe_config.GROUPED_SIGMOID_FIELDS,
    )
    CONFIG_IRRELEVANT = {
        "output_router_logits": "what the HF model returns",
        "moe_shared_expert_intermediate_size": "the published code reads num_shared_experts",
        "router_dtype": "scores are in fp32",
    }
    CONFIG_FIXED = {
        **{"use_bias": False, "use_rmsnorm": True, "embedding_dropout": 0.0, "output_dropout": 0.0},
        **{"moe_router_enable_expert_bias": True, "score_function": "sigmoid", "use_sliding_window": False},
        **{"rope_scaling": None, "num_nextn_predict_layers": 0, "mtp_loss_scaling_factor": 0},
    }
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, **moe_config.BIASED_ROUTER_DEFAULTS}

    def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
        # The class may have been written for transformers 4, which keeps these fields apart.
        given = getattr(hf_config, "rope_parameters", None) or {}
        hf_config.rope_parameters = {
            "rope_type": "default",
            "rope_theta": getattr(hf_config, "rope_theta", None),
            "partial_rotary_factor": getattr(hf_config, "partial_rotary_factor", 1.0),
            **given,
        }
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.grouped_sigmoid_fields(hf_config),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **moe_config.grouped_sigmoid_values(provider),
            "rope_theta": provider.rotary_base,
            "partial_rotary_factor": provider.rotary_percent,
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, embedding="word_embeddings"),
            *blocks.pre_norms(),
            *blocks.attention(
                hf="model.layers.*.attention",
                qkv_bias=config.use_qkv_bias,
                qk_norm=config.use_qk_norm,
                qk_norm_names=blocks.LONG_QK_NORM_NAMES,
                fused_qkv="query_key_value",
                output="dense",
            ),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="gate.expert_bias", shared="shared_experts"),
        )
