"""dots.llm1."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Dots1ForCausalLM", target="GPTModel", model_type="dots1")
class Dots1Bridge(MegatronModelBridge):
    """Qwen3's attention, and DeepSeek-V3's experts."""

    CONFIG = (
        *fields.DECODER,
        *fields.DEEPSEEK_EXPERTS,
        fields.ATTENTION_BIAS,
        fields.WINDOW_LAYERS,
        fields.fixed(scoring_func="noaux_tc", topk_method="noaux_tc", moe_layer_freq=1),
        fields.defaults(qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="gate.e_score_correction_bias", shared="shared_experts"),
        )
