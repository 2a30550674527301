"""EXAONE 4.0."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Exaone4Config


@MegatronModelBridge.register_bridge(source="Exaone4ForCausalLM", target="GPTModel", model_type="exaone4")
class Exaone4Bridge(MegatronModelBridge):
    """Norms behind attention and MLP, norms of q and k; if some layers have windows, the others have no rope."""

    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "sliding_window", "layer_types")
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "use_pre_norms": False,
        "use_post_norms": True,
        "qk_layernorm": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Exaone4Config") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        if hf_config.sliding_window is None:
            return fields
        no_rope = [int(kind == "full_attention") for kind in hf_config.layer_types]
        if all(no_rope):
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: sliding_window {hf_config.sliding_window} with no sliding_attention in "
                "layer_types leaves every layer without rope; set sliding_window to null for a model with rope"
            )
        return {**fields, "no_rope_freq": no_rope}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.post_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
        )
