"""Granite 3.x (dense)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.llama.llama_bridge import LlamaBridge

if TYPE_CHECKING:
    from transformers import GraniteConfig


@MegatronModelBridge.register_bridge(source="GraniteForCausalLM", target="GPTModel", model_type="granite")
class GraniteBridge(LlamaBridge):
    """Like Llama, with multipliers of embeddings, attention scores, residual additions and logits."""

    CONFIG_MAPPING = {
        **LlamaBridge.CONFIG_MAPPING,
        "embedding_multiplier": "embedding_multiplier",
        "attention_multiplier": "softmax_scale",
        "residual_multiplier": "residual_multiplier",
    }
    CONFIG_CHECKED = (*LlamaBridge.CONFIG_CHECKED, "logits_scaling")

    def hf_config_to_provider_kwargs(self, hf_config: "GraniteConfig") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        return {**fields, "logits_multiplier": 1 / hf_config.logits_scaling}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        # 1 / (1 / x) is x but for the last digits, which no config has.
        scaling = float(f"{1 / provider.logits_multiplier:.14g}")
        return {**super().megatron_to_hf_config(provider), "logits_scaling": scaling}
