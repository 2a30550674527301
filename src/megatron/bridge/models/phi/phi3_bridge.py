"""Phi-3, Phi-3.5 and Phi-4 (text)."""

from typing import Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="Phi3ForCausalLM", target="GPTModel", model_type="phi3")
class Phi3Bridge(MegatronModelBridge):
    """Fused projections, longrope on all or part of each head, and a sliding window if the config says so."""

    CONFIG_MAPPING = {**MegatronModelBridge.CONFIG_MAPPING, "resid_pdrop": "hidden_dropout"}
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "sliding_window", "original_max_position_embeddings")
    CONFIG_IRRELEVANT = config_mapping.not_read(
        "embd_pdrop", "attention_bias", "mlp_bias", "lm_head_bias", "full_attn_mod", "interpolate_factor"
    )
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "embedding_dropout": 0.0}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        # transformers copies the number into the parameters of a scaled rope, and gives it precedence there.
        name = "original_max_position_embeddings"
        original = {name: provider.rope_parameters[name]} if name in (provider.rope_parameters or {}) else {}
        return {**super().megatron_to_hf_config(provider), **original}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(fused_qkv="qkv_proj"),
            *blocks.gated_mlp(fused_gate_up="gate_up_proj"),
        )
