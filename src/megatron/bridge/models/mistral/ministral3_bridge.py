"""Ministral 3 (text)."""

from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.mistral.mistral_bridge import MistralBridge


@MegatronModelBridge.register_bridge(source="Ministral3ForCausalLM", target="GPTModel", model_type="ministral3")
class Ministral3Bridge(MistralBridge):
    """Like Mistral, with YaRN and a query that is scaled by its position."""

    PROVIDER_CLASS = "megatron.bridge.models.mistral.modeling_ministral3.Ministral3Provider"
