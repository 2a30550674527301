"""Qwen3 mixture of experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen.qwen3_bridge import Qwen3Bridge

if TYPE_CHECKING:
    from transformers import Qwen3MoeConfig


@MegatronModelBridge.register_bridge(source="Qwen3MoeForCausalLM", target="GPTModel", model_type="qwen3_moe")
class Qwen3MoeBridge(Qwen3Bridge):
    """Qwen3 with experts in some or all layers; the router takes the softmax before or after choosing."""

    CONFIG_MAPPING = {**Qwen3Bridge.CONFIG_MAPPING, **config_mapping.MOE_FIELDS}
    CONFIG_CHECKED = (*Qwen3Bridge.CONFIG_CHECKED, "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")
    CONFIG_IRRELEVANT = {"num_local_experts": "another name of num_experts", "output_router_logits": "HF output"}
    CONFIG_DEFAULTS = {**Qwen3Bridge.CONFIG_DEFAULTS, **config_mapping.MOE_DEFAULTS}

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen3MoeConfig") -> dict[str, Any]:
        step, dense = hf_config.decoder_sparse_step, hf_config.mlp_only_layers
        layers = range(hf_config.num_hidden_layers)
        is_moe = [layer not in dense and (layer + 1) % step == 0 for layer in layers]
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "moe_router_pre_softmax": not hf_config.norm_topk_prob,
            "moe_layer_freq": config_mapping.moe_layer_freq(is_moe),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        freq = provider.moe_layer_freq
        dense = [] if isinstance(freq, int) else [layer for layer, moe in enumerate(freq) if not moe]
        return {
            **super().megatron_to_hf_config(provider),
            "norm_topk_prob": not provider.moe_router_pre_softmax,
            "decoder_sparse_step": 1,
            "mlp_only_layers": dense,
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(*super().mapping_registry().entries, *blocks.moe())
