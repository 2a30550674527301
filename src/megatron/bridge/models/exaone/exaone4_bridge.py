"""EXAONE 4.0."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Exaone4Config


def _no_rope(hf_config: "Exaone4Config") -> dict[str, Any]:
    if hf_config.sliding_window is None:
        return {}
    no_rope = [int(kind == "full_attention") for kind in hf_config.layer_types]
    if all(no_rope):
        raise UnsupportedConfigError(
            f"sliding_window {hf_config.sliding_window} with no sliding_attention in "
            "layer_types leaves every layer without rope; set sliding_window to null for a model with rope"
        )
    return {"no_rope_freq": no_rope}


@MegatronModelBridge.register_bridge(source="Exaone4ForCausalLM", target="GPTModel", model_type="exaone4")
class Exaone4Bridge(MegatronModelBridge):
    """Norms behind attention and MLP, norms of q and k; if some layers have windows, the others have no rope."""

    CONFIG = (
        *fields.DECODER,
        fields.WINDOW_LAYERS,
        fields.Part(to_provider=_no_rope),
        fields.defaults(use_pre_norms=False, use_post_norms=True, qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.post_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
        )
