"""ERNIE 4.5 mixtures of experts (text)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, layout, moe_config
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


@MegatronModelBridge.register_bridge(source="Ernie4_5_MoeForCausalLM", target="GPTModel", model_type="ernie4_5_moe")
class Ernie45MoeBridge(MegatronModelBridge):
    """ERNIE 4.5 with experts in some layers, chosen by softmax scores with a bias."""

    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in MegatronModelBridge.CONFIG_MAPPING.items() if hf != "attention_dropout"},
        "moe_k": "moe_router_topk",
        "moe_num_experts": "num_moe_experts",
        "moe_intermediate_size": "moe_ffn_hidden_size",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "moe_num_shared_experts"),
    )
    CONFIG_IRRELEVANT = {
        "moe_norm_min": "the largest softmax scores never sum to less",
        "output_router_logits": "what the HF model returns",
        **config_mapping.not_read("moe_capacity", "moe_gate", "moe_use_aux_free", "num_nextn_predict_layers"),
    }
    CONFIG_FIXED = {"use_bias": False}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "attention_dropout": 0.0,
        "rotary_interleaved": True,
        "moe_router_dtype": "fp32",
        "moe_router_renormalize": True,
        "moe_router_softmax_expert_bias": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Ernie4_5_MoeConfig") -> dict[str, Any]:
        first, last, step = (
            getattr(hf_config, f"moe_layer_{name}") for name in ("start_index", "end_index", "interval")
        )
        layers = range(hf_config.num_hidden_layers)
        is_moe = [first <= layer <= last and (layer + 1) % step == 0 for layer in layers]
        num_shared = hf_config.moe_num_shared_experts
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "moe_layer_freq": moe_config.moe_layer_freq(is_moe),
            "moe_shared_expert_intermediate_size": num_shared * hf_config.moe_intermediate_size or None,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        freq = provider.moe_layer_freq
        layers = list(range(provider.num_layers)) if isinstance(freq, int) else [i for i, moe in enumerate(freq) if moe]
        step = layers[1] - layers[0] if len(layers) > 1 else 1
        if layers != [i for i in range(layers[0], layers[-1] + 1) if (i + 1) % step == 0]:
            raise UnsupportedConfigError(f"moe_layer_freq {freq}: layers with experts must be evenly spaced")
        shared_size = provider.moe_shared_expert_intermediate_size or 0
        return {
            **super().megatron_to_hf_config(provider),
            "moe_layer_start_index": layers[0],
            "moe_layer_end_index": layers[-1],
            "moe_layer_interval": step,
            "moe_num_shared_experts": shared_size // provider.moe_ffn_hidden_size,
        }

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
