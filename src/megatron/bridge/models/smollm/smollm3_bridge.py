"""SmolLM3."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.llama.llama_bridge import LlamaBridge


@MegatronModelBridge.register_bridge(source="SmolLM3ForCausalLM", target="GPTModel", model_type="smollm3")
class SmolLM3Bridge(LlamaBridge):
    """Like Llama, but some layers have no rotary embedding, and there may be a sliding window."""

    CONFIG = (
        *LlamaBridge.CONFIG,
        fields.SWITCHED_WINDOW_LAYERS,
        fields.NO_ROPE_LAYERS,
        fields.turned_into("no_rope_layers", "no_rope_layer_interval"),
    )
