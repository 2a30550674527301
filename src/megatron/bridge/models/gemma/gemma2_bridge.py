"""Gemma 2."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@MegatronModelBridge.register_bridge(source="Gemma2ForCausalLM", target="GPTModel", model_type="gemma2")
class Gemma2Bridge(MegatronModelBridge):
    """Gemma with norms behind attention and MLP, capped scores and logits, and windows on every other layer."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **config_mapping.ATTENTION_BIAS,
        "final_logit_softcapping": "final_logit_softcapping",
        "attn_logit_softcapping": "attn_logit_softcapping",
    }
    CONFIG_CHECKED = (
        "hidden_activation", "rope_parameters", "use_bidirectional_attention", "sliding_window", "layer_types",
        "query_pre_attn_scalar",
    )  # fmt: skip
    CONFIG_IRRELEVANT = config_mapping.not_read("hidden_act", "sliding_window_size")
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "layernorm_zero_centered_gamma": True,
        "use_post_norms": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "PretrainedConfig") -> dict[str, Any]:
        config_mapping.check_values(hf_config, self._where(hf_config), use_bidirectional_attention=(None, False))
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "embedding_multiplier": sqrt(hf_config.hidden_size),
            "softmax_scale": hf_config.query_pre_attn_scalar**-0.5,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        values = super().megatron_to_hf_config(provider)
        return {**values, "query_pre_attn_scalar": round(provider.softmax_scale**-2)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(mlp="pre_feedforward_layernorm"),
            *blocks.post_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm="qk_layernorm" in self.CONFIG_DEFAULTS),
            *blocks.gated_mlp(),
        )
