"""Qwen3-Next."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import moe_config
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen.qwen3_5_bridge import Qwen3_5Bridge, Qwen3_5MoeBridge

if TYPE_CHECKING:
    from transformers import Qwen3NextConfig


@MegatronModelBridge.register_bridge(source="Qwen3NextForCausalLM", target="GPTModel", model_type="qwen3_next")
class Qwen3NextBridge(Qwen3_5MoeBridge):
    """Like Qwen3.5's mixture, with dense layers among the others, and projections stored by key head."""

    PROJECTIONS_BY_HEAD = True
    CONFIG_MAPPING = {**Qwen3_5Bridge.CONFIG_MAPPING, **Qwen3_5MoeBridge.CONFIG_MAPPING}
    CONFIG_CHECKED = (*Qwen3_5MoeBridge.CONFIG_CHECKED, *moe_config.SPARSE_STEP_FIELDS)

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen3NextConfig") -> dict[str, Any]:
        return {**super().hf_config_to_provider_kwargs(hf_config), **moe_config.sparse_step_fields(hf_config)}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), **moe_config.sparse_step_values(provider)}
