"""Gemma 3 (text)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import config_mapping
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.gemma.gemma2_bridge import Gemma2Bridge

if TYPE_CHECKING:
    from transformers import Gemma3TextConfig


@MegatronModelBridge.register_bridge(source="Gemma3ForCausalLM", target="GPTModel", model_type="gemma3_text")
class Gemma3Bridge(Gemma2Bridge):
    """Gemma 2 with norms of q and k instead of capped scores, and a rotary embedding of its own in window layers."""

    CONFIG_IRRELEVANT = {
        **Gemma2Bridge.CONFIG_IRRELEVANT,
        "rope_local_base_freq": "transformers turns it into rope_parameters",
    }
    CONFIG_DEFAULTS = {**Gemma2Bridge.CONFIG_DEFAULTS, "qk_layernorm": True}

    def hf_config_to_provider_kwargs(self, hf_config: "Gemma3TextConfig") -> dict[str, Any]:
        # transformers 5.23 does not pass the cap on to attention, whatever its value.
        config_mapping.check_values(hf_config, self._where(hf_config), attn_logit_softcapping=(None,))
        return super().hf_config_to_provider_kwargs(hf_config)
