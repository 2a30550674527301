"""Qwen1.5 and Qwen2 mixtures of experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge

if TYPE_CHECKING:
    from transformers import Qwen2MoeConfig


@MegatronModelBridge.register_bridge(source="Qwen2MoeForCausalLM", target="GPTModel", model_type="qwen2_moe")
class Qwen2MoeBridge(Qwen2Bridge):
    """Qwen2 with experts in some or all layers, and a shared expert with a gate."""

    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in Qwen2Bridge.CONFIG_MAPPING.items() if hf != "head_dim"},
        **moe_config.MOE_FIELDS,
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
        "qkv_bias": "add_qkv_bias",
    }
    CONFIG_CHECKED = (*Qwen2Bridge.CONFIG_CHECKED, *moe_config.SPARSE_STEP_FIELDS)
    CONFIG_IRRELEVANT = {"output_router_logits": "what the HF model returns"}
    CONFIG_DEFAULTS = {
        **Qwen2Bridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "moe_shared_expert_gate": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen2MoeConfig") -> dict[str, Any]:
        return {**super().hf_config_to_provider_kwargs(hf_config), **moe_config.sparse_step_fields(hf_config)}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), **moe_config.sparse_step_values(provider)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=self.hf_config.qkv_bias),
            *blocks.gated_mlp(),
            *blocks.moe(shared="shared_expert", shared_gate="shared_expert_gate"),
        )
