"""Llama 4 (text)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Llama4TextConfig


@MegatronModelBridge.register_bridge(source="Llama4ForCausalLM", target="GPTModel", model_type="llama4_text")
class Llama4Bridge(MegatronModelBridge):
    """Chunked attention with rotary embeddings between layers with neither, and one expert per token."""

    PROVIDER_CLASS = "megatron.bridge.models.llama.modeling_llama4.Llama4Provider"
    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **config_mapping.ATTENTION_BIAS,
        "intermediate_size": ("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
        "intermediate_size_mlp": "ffn_hidden_size",
        "num_local_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
        "attention_chunk_size": "attention_chunk_size",
        "use_qk_norm": "rope_layer_qk_norm",
        "attn_temperature_tuning": "attention_temperature_tuning",
        "floor_scale": "attention_floor_scale",
        "attn_scale": "attention_scale",
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "moe_layers", "no_rope_layers", "layer_types")
    CONFIG_IRRELEVANT = {
        "interleave_moe_layer_step": "transformers turns it into moe_layers",
        "no_rope_layer_interval": "transformers turns it into no_rope_layers",
        "output_router_logits": "what the HF model returns",
        "router_jitter_noise": "training",
        "for_llm_compressor": "another runtime's settings",
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "rotary_interleaved": True,
        "moe_router_score_function": "sigmoid",
        "moe_apply_probs_on_input": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Llama4TextConfig") -> dict[str, Any]:
        where = self._where(hf_config)
        config_mapping.check_values(hf_config, where, num_experts_per_tok=(1,))
        has_rope = [bool(rope) for rope in hf_config.no_rope_layers]
        if [kind == "chunked_attention" for kind in hf_config.layer_types] != has_rope:
            raise UnsupportedConfigError(
                f"{where}: layer_types must be chunked_attention just where no_rope_layers is 1, "
                f"found {hf_config.layer_types} and {hf_config.no_rope_layers}"
            )
        if hf_config.attention_chunk_size is None and any(has_rope):
            raise UnsupportedConfigError(f"{where}: chunked_attention needs an attention_chunk_size")
        is_moe = [layer in hf_config.moe_layers for layer in range(hf_config.num_hidden_layers)]
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "no_rope_freq": [int(not rope) for rope in has_rope],
            "moe_layer_freq": moe_config.moe_layer_freq(is_moe),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        freq = provider.moe_layer_freq
        layers = range(provider.num_layers)
        return {
            **super().megatron_to_hf_config(provider),
            "moe_layers": list(layers) if isinstance(freq, int) else [layer for layer in layers if freq[layer]],
            "no_rope_layers": [1 - no_rope for no_rope in provider.no_rope_freq],
            "layer_types": ["full_attention" if no_rope else "chunked_attention" for no_rope in provider.no_rope_freq],
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias, feed_forward = self.hf_config.attention_bias, blocks.FEED_FORWARD
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(hf=feed_forward),
            *blocks.fused_moe(hf=feed_forward, transposed=True, shared="shared_expert"),
        )
