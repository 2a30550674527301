"""Qwen3.5 (text)."""

from typing import Any, ClassVar

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="Qwen3_5ForCausalLM", target="GPTModel", model_type="qwen3_5_text")
class Qwen3_5Bridge(MegatronModelBridge):
    """Gated delta nets with a layer of gated attention among several of them."""

    PROJECTIONS_BY_HEAD: ClassVar[bool] = False
    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **config_mapping.ATTENTION_BIAS,
        **config_mapping.GATED_DELTA_NET_FIELDS,
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "layer_types", "mtp_num_hidden_layers")
    CONFIG_IRRELEVANT = {
        "full_attention_interval": "transformers turns it into layer_types",
        "mamba_ssm_dtype": "another runtime's settings",
    }
    CONFIG_FIXED = {"attn_output_gate": True, "mtp_use_dedicated_embeddings": False}
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, **config_mapping.GATED_DELTA_NET_DEFAULTS}

    def hf_config_to_provider_kwargs(self, hf_config: Any) -> dict[str, Any]:
        num_prediction = getattr(hf_config, "mtp_num_hidden_layers", None) or 0
        if num_prediction > 1:
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: mtp_num_hidden_layers {num_prediction} cannot be represented: the layers "
                "share their norms and projection, and in megatron-core each has its own; expected 0 or 1"
            )
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **config_mapping.linear_attention_fields(hf_config, self._where(hf_config)),
            "mtp_num_layers": num_prediction or None,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.linear_attention_values(provider),
            "mtp_num_hidden_layers": provider.mtp_num_layers or 0,
        }

    def layer_mappings(self) -> blocks.Mappings:
        """The mappings of a layer with attention."""
        bias = self.hf_config.attention_bias
        return [
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, output_gate=True),
            *blocks.gated_mlp(),
        ]

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        # Qwen3-Next's published configs do not have the field, and the checkpoints have the layer.
        is_off = getattr(config, "mtp_num_hidden_layers", None) == 0
        layer = self.layer_mappings()
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *layer,
            *blocks.gated_delta_net(config, fused_by_head=self.PROJECTIONS_BY_HEAD),
            *(blocks.no_multi_token_prediction() if is_off else blocks.prediction_module(layer)),
        )


@MegatronModelBridge.register_bridge(source="Qwen3_5MoeForCausalLM", target="GPTModel", model_type="qwen3_5_moe_text")
class Qwen3_5MoeBridge(Qwen3_5Bridge):
    """Qwen3.5 with experts, and a shared one with a gate, in every layer."""

    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in Qwen3_5Bridge.CONFIG_MAPPING.items() if hf != "intermediate_size"},
        **moe_config.MOE_FIELDS,
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    }
    CONFIG_IRRELEVANT = {
        **Qwen3_5Bridge.CONFIG_IRRELEVANT,
        **config_mapping.not_read("intermediate_size"),
        "output_router_logits": "what the HF model returns",
    }
    CONFIG_DEFAULTS = {
        **Qwen3_5Bridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "moe_shared_expert_gate": True,
    }

    def layer_mappings(self) -> blocks.Mappings:
        return [*super().layer_mappings(), *blocks.moe(shared="shared_expert", shared_gate="shared_expert_gate")]
