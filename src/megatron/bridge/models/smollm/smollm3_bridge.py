"""SmolLM3."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.llama.llama_bridge import LlamaBridge

if TYPE_CHECKING:
    from transformers import SmolLM3Config


@MegatronModelBridge.register_bridge(source="SmolLM3ForCausalLM", target="GPTModel", model_type="smollm3")
class SmolLM3Bridge(LlamaBridge):
    """Like Llama, with some layers that have no rotary embedding, and perhaps a sliding window."""

    CONFIG_CHECKED = (
        *LlamaBridge.CONFIG_CHECKED, "no_rope_layers", "sliding_window", "use_sliding_window", "layer_types"
    )  # fmt: skip
    CONFIG_IRRELEVANT = {"no_rope_layer_interval": "transformers turns it into no_rope_layers"}

    def hf_config_to_provider_kwargs(self, hf_config: "SmolLM3Config") -> dict[str, Any]:
        # HF marks the layers with rope, Megatron those without.
        no_rope = [1 - has_rope for has_rope in hf_config.no_rope_layers[: hf_config.num_hidden_layers]]
        return {**super().hf_config_to_provider_kwargs(hf_config), "no_rope_freq": no_rope}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        with_rope = [1 - no_rope for no_rope in provider.no_rope_freq]
        return {**super().megatron_to_hf_config(provider), "no_rope_layers": with_rope}
