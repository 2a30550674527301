"""Qwen3-Next."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Qwen3NextConfig


@MegatronModelBridge.register_bridge(source="Qwen3NextForCausalLM", target="GPTModel", model_type="qwen3_next")
class Qwen3NextBridge(MegatronModelBridge):
    """Gated delta nets with a layer of gated attention among several of them, and experts with a shared one."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **config_mapping.ATTENTION_BIAS,
        **config_mapping.GATED_DELTA_NET_FIELDS,
        **moe_config.MOE_FIELDS,
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "layer_types", *moe_config.SPARSE_STEP_FIELDS)
    CONFIG_IRRELEVANT = {
        "full_attention_interval": "transformers turns it into layer_types",
        "output_router_logits": "what the HF model returns",
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        **config_mapping.GATED_DELTA_NET_DEFAULTS,
        "moe_shared_expert_gate": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen3NextConfig") -> dict[str, Any]:
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **config_mapping.linear_attention_fields(hf_config, self._where(hf_config)),
            **moe_config.sparse_step_fields(hf_config),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.linear_attention_values(provider),
            **moe_config.sparse_step_values(provider),
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.gated_delta_net(config, fused_by_head=True),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, output_gate=True),
            *blocks.gated_mlp(),
            *blocks.no_multi_token_prediction(),
            *blocks.moe(shared="shared_expert", shared_gate="shared_expert_gate"),
        )
