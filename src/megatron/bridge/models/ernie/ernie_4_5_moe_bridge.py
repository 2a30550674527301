"""ERNIE 4.5 mixtures of experts (text)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, fields, layout
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    from transformers import Ernie4_5_MoeConfig


class RouterBiasMapping(AutoMapping):
    """The router's bias, `[E]`, which the HF model has for one group of experts: `[1, E]`."""

    def layout(self, shape: Shape, config: Any) -> Layout:
        return layout.stacked_expert(shape, 1, 0)


def _expert_layer_fields(hf_config: "Ernie4_5_MoeConfig") -> dict[str, Any]:
    first, last, step = (getattr(hf_config, f"moe_layer_{name}") for name in ("start_index", "end_index", "interval"))
    layers = range(hf_config.num_hidden_layers)
    num_shared = hf_config.moe_num_shared_experts
    return {
        "moe_layer_freq": fields.moe_layer_freq(
            [first <= layer <= last and (layer + 1) % step == 0 for layer in layers]
        ),
        "moe_shared_expert_intermediate_size": num_shared * hf_config.moe_intermediate_size or None,
    }


def _expert_layer_values(provider: Any) -> dict[str, Any]:
    layers = [layer for layer, is_moe in enumerate(fields.moe_layers(provider)) if is_moe]
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    if layers != [i for i in range(layers[0], layers[-1] + 1) if (i + 1) % step == 0]:
        raise UnsupportedConfigError(
            f"moe_layer_freq {provider.moe_layer_freq}: layers with experts must be evenly spaced"
        )
    return {
        "moe_layer_start_index": layers[0],
        "moe_layer_end_index": layers[-1],
        "moe_layer_interval": step,
        "moe_num_shared_experts": (provider.moe_shared_expert_intermediate_size or 0) // provider.moe_ffn_hidden_size,
    }


@MegatronModelBridge.register_bridge(source="Ernie4_5_MoeForCausalLM", target="GPTModel", model_type="ernie4_5_moe")
class Ernie45MoeBridge(MegatronModelBridge):
    """ERNIE 4.5 with experts in some layers, chosen by softmax scores with a bias."""

    CONFIG = (
        *fields.decoder(attention_dropout=None),
        fields.experts(num_experts="moe_num_experts", num_experts_per_tok="moe_k"),
        fields.Part(
            reads=("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "moe_num_shared_experts"),
            to_provider=_expert_layer_fields,
            to_hf=_expert_layer_values,
        ),
        fields.irrelevant(moe_norm_min="the largest softmax scores never sum to less"),
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
            Dropped("model.mtp**", "transformers has no module for it"),
        )
