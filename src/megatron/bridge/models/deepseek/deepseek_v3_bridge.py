"""DeepSeek-V3 and R1, and the models of the same architecture: Kimi-K2, Moonlight."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.mla_provider import MLAModelProvider

if TYPE_CHECKING:
    from transformers import DeepseekV3Config


@MegatronModelBridge.register_bridge(source="KimiK2ForCausalLM", target="GPTModel", model_type="kimi_k2")
@MegatronModelBridge.register_bridge(source="DeepseekV3ForCausalLM", target="GPTModel", model_type="deepseek_v3")
class DeepseekV3Bridge(MegatronModelBridge):
    """Multi-latent attention, and experts chosen by biased sigmoid scores within the best groups of experts."""

    PROVIDER_CLASS = MLAModelProvider
    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in MegatronModelBridge.CONFIG_MAPPING.items() if hf != "head_dim"},
        **config_mapping.MLA_FIELDS,
        "num_experts_per_tok": "moe_router_topk",
        "n_routed_experts": "num_moe_experts",
        "moe_intermediate_size": "moe_ffn_hidden_size",
        "routed_scaling_factor": "moe_router_topk_scaling_factor",
    }
    CONFIG_CHECKED = (
        "hidden_act",
        "q_lora_rank",
        "n_shared_experts",
        "first_k_dense_replace",
        *config_mapping.GROUPED_SIGMOID_FIELDS,
    )
    CONFIG_IRRELEVANT = {
        "qk_head_dim": "the sum of two other fields",
        "head_dim": "another name of qk_rope_head_dim",
        "output_router_logits": "what the HF model returns",
        "num_nextn_predict_layers": "the provider's mtp_num_layers decides whether they are loaded",
        "seq_aux": "training",
        "aux_loss_alpha": "training",
        "ep_size": "another runtime's settings",
    }
    CONFIG_FIXED = {
        "attention_bias": False,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **config_mapping.MOE_DEFAULTS,
        "qk_layernorm": True,
        # arXiv 2412.19437, section 4.2: the bias balances the experts, the loss only within a sequence
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_aux_loss_coeff": 1e-4,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "DeepseekV3Config") -> dict[str, Any]:
        num_dense = hf_config.first_k_dense_replace
        is_moe = [layer >= num_dense for layer in range(hf_config.num_hidden_layers)]
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **config_mapping.mla_rotary_fields(hf_config, self._where(hf_config)),
            **config_mapping.grouped_sigmoid_fields(hf_config),
            "q_lora_rank": hf_config.q_lora_rank,
            "moe_layer_freq": config_mapping.moe_layer_freq(is_moe),
            "moe_shared_expert_intermediate_size": hf_config.n_shared_experts * hf_config.moe_intermediate_size,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.grouped_sigmoid_values(provider),
            "q_lora_rank": provider.q_lora_rank,
            "n_shared_experts": provider.moe_shared_expert_intermediate_size // provider.moe_ffn_hidden_size,
            "first_k_dense_replace": config_mapping.first_dense_layers(provider.moe_layer_freq),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.latent_attention(q_latent=config.q_lora_rank is not None),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="gate.e_score_correction_bias", shared="shared_experts"),
        )
