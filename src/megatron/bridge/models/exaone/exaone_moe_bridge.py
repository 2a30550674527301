"""EXAONE mixture of experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import ExaoneMoeConfig


@MegatronModelBridge.register_bridge(source="ExaoneMoeForCausalLM", target="GPTModel", model_type="exaone_moe")
class ExaoneMoeBridge(MegatronModelBridge):
    """Layers with a window and rotary embedding between layers with neither, and DeepSeek-V3's experts."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **{hf: ours for hf, ours in moe_config.MOE_FIELDS.items() if hf != "router_aux_loss_coef"},
        "routed_scaling_factor": "moe_router_topk_scaling_factor",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *moe_config.GROUPED_SIGMOID_FIELDS,
        *("first_k_dense_replace", "mlp_layer_types", "num_shared_experts", "sliding_window", "layer_types"),
    )
    CONFIG_IRRELEVANT = {
        "output_router_logits": "what the HF model returns",
        "sliding_window_pattern": "transformers turns it into layer_types",
        "num_nextn_predict_layers": "transformers does not compute with it",
    }
    CONFIG_FIXED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "qk_layernorm": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "ExaoneMoeConfig") -> dict[str, Any]:
        is_full = [kind == "full_attention" for kind in hf_config.layer_types]
        if all(is_full):
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: sliding_window {hf_config.sliding_window} and no layer with a window"
            )
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.grouped_sigmoid_fields(hf_config),
            "no_rope_freq": [int(full) for full in is_full],
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **moe_config.grouped_sigmoid_values(provider),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="e_score_correction_bias", shared="shared_experts"),
            *blocks.no_multi_token_prediction(),
        )
