"""Qwen3 mixture of experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen.qwen3_bridge import Qwen3Bridge

if TYPE_CHECKING:
    from transformers import Qwen3MoeConfig


@MegatronModelBridge.register_bridge(source="Qwen3MoeForCausalLM", target="GPTModel", model_type="qwen3_moe")
class Qwen3MoeBridge(Qwen3Bridge):
    """Qwen3 with experts in some or all layers; the router takes the softmax before or after choosing."""

    CONFIG_MAPPING = {**Qwen3Bridge.CONFIG_MAPPING, **moe_config.MOE_FIELDS}
    CONFIG_CHECKED = (*Qwen3Bridge.CONFIG_CHECKED, *moe_config.SPARSE_STEP_FIELDS)
    CONFIG_IRRELEVANT = {"num_local_experts": "another name of num_experts", "output_router_logits": "HF output"}
    CONFIG_DEFAULTS = {**Qwen3Bridge.CONFIG_DEFAULTS, **moe_config.MOE_DEFAULTS}

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen3MoeConfig") -> dict[str, Any]:
        return {**super().hf_config_to_provider_kwargs(hf_config), **moe_config.sparse_step_fields(hf_config)}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), **moe_config.sparse_step_values(provider)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(*super().mapping_registry().entries, *blocks.moe())
