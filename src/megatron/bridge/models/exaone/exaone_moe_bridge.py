"""EXAONE mixture of experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import ExaoneMoeConfig


def _no_rope(hf_config: "ExaoneMoeConfig") -> dict[str, Any]:
    no_rope = [int(kind == "full_attention") for kind in hf_config.layer_types]
    if all(no_rope):
        raise UnsupportedConfigError(f"sliding_window {hf_config.sliding_window} and no layer with a window")
    return {"no_rope_freq": no_rope}


@MegatronModelBridge.register_bridge(source="ExaoneMoeForCausalLM", target="GPTModel", model_type="exaone_moe")
class ExaoneMoeBridge(MegatronModelBridge):
    """Layers with a window and rotary embedding between layers with neither, and DeepSeek-V3's experts."""

    CONFIG = (
        *fields.DECODER,
        *fields.biased_experts(),
        fields.expert_layers("first_k_dense_replace", "mlp_layer_types", "num_shared_experts"),
        fields.GROUPED_SIGMOID_ROUTER,
        fields.WINDOW_LAYERS,
        fields.Part(to_provider=_no_rope),
        fields.irrelevant(num_nextn_predict_layers="transformers does not compute with it"),
        fields.fixed(scoring_func="sigmoid", topk_method="noaux_tc"),
        fields.defaults(qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="e_score_correction_bias", shared="shared_experts"),
            *blocks.no_multi_token_prediction(),
        )
