"""ERNIE 4.5 mixtures of experts (text)."""

from typing import TYPE_CHECKING

from megatron.bridge.models.conversion import layout
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.models.conversion.param_mapping import AutoMapping, NotComputed
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig


class RouterBiasMapping(AutoMapping):
    """The router's bias `[E]`, which HF stores for one group of experts: `[1, E]`."""

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layout.stacked_expert(shape, 1, 0)


@MegatronModelBridge.register_bridge(source="Ernie4_5_MoeForCausalLM", target="GPTModel", model_type="ernie4_5_moe")
class Ernie45MoeBridge(MegatronModelBridge):
    """Like ERNIE 4.5, with experts in some layers, chosen by softmax scores with a bias."""

    CONFIG = (
        *fields.decoder(attention_dropout=None),
        fields.experts(num_experts="moe_num_experts", num_experts_per_tok="moe_k"),
        fields.SPACED_EXPERT_LAYERS,
        fields.irrelevant("the largest softmax scores never sum to less", "moe_norm_min"),
        fields.not_read("moe_capacity", "moe_gate", "moe_use_aux_free", "num_nextn_predict_layers"),
        fields.fixed(use_bias=False),
        fields.ROUTER_IN_FP32,
        fields.defaults(moe_router_renormalize=True, moe_router_softmax_expert_bias=True),
        fields.defaults(attention_dropout=0.0, rotary_interleaved=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(),
            *blocks.gated_mlp(),
            *blocks.moe(shared="shared_experts" if config.moe_num_shared_experts else None),
            RouterBiasMapping(
                f"{blocks.LAYER}.mlp.router.expert_bias", "model.layers.*.mlp.moe_statics.e_score_correction_bias"
            ),
            NotComputed("model.mtp**", "transformers has no module for it"),
        )
