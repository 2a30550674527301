"""Gemma 2."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.gemma.gemma_bridge import SCALED_EMBEDDINGS


@MegatronModelBridge.register_bridge(source="Gemma2ForCausalLM", target="GPTModel", model_type="gemma2")
class Gemma2Bridge(MegatronModelBridge):
    """Like Gemma, plus norms behind attention and MLP, capped scores and logits, and windows on every other layer."""

    CONFIG = (
        *fields.decoder(hidden_act="hidden_activation"),
        fields.ATTENTION_BIAS,
        fields.same("final_logit_softcapping", "attn_logit_softcapping"),
        fields.WINDOW_LAYERS,
        SCALED_EMBEDDINGS,
        fields.converted("query_pre_attn_scalar", "softmax_scale", lambda x: x**-0.5, lambda x: round(x**-2)),
        fields.fixed(use_bidirectional_attention=False),
        fields.not_read("hidden_act", "sliding_window_size"),
        fields.defaults(layernorm_zero_centered_gamma=True, use_post_norms=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(mlp="pre_feedforward_layernorm"),
            *blocks.post_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm="qk_layernorm" in self.CONFIG_DEFAULTS),
            *blocks.gated_mlp(),
        )
