"""Phi-3, Phi-3.5 and Phi-4 (text)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields

_ORIGINAL = "original_max_position_embeddings"


def _original_length(provider: fields.Provider) -> fields.Values:
    # transformers copies the number into the parameters of a scaled rope, where it takes precedence.
    rope = provider.rope_parameters or {}
    return {_ORIGINAL: rope[_ORIGINAL]} if _ORIGINAL in rope else {}


@MegatronModelBridge.register_bridge(source="Phi3ForCausalLM", target="GPTModel", model_type="phi3")
class Phi3Bridge(MegatronModelBridge):
    """Fused projections, longrope on all or part of each head, and a sliding window if the config says so."""

    CONFIG = (
        *fields.DECODER,
        fields.PARTIAL_ROPE,
        fields.WINDOW,
        fields.same(resid_pdrop="hidden_dropout"),
        fields.Part(reads=(_ORIGINAL,), to_hf=_original_length),
        fields.not_read(
            "embd_pdrop", "attention_bias", "mlp_bias", "lm_head_bias", "full_attn_mod", "interpolate_factor"
        ),
        fields.defaults(embedding_dropout=0.0),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(fused_qkv="qkv_proj"),
            *blocks.gated_mlp(fused_gate_up="gate_up_proj"),
        )
