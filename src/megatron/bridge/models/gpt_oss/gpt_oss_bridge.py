"""gpt-oss."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="GptOssForCausalLM", target="GPTModel", model_type="gpt_oss")
class GptOssBridge(MegatronModelBridge):
    """Attention sinks, windows on every other layer, biases everywhere, and experts with a clamped SwiGLU."""

    CONFIG = (
        *fields.decoder(hidden_act=None),
        fields.LOCAL_EXPERTS,
        fields.same(swiglu_limit="activation_func_clamp_value"),
        fields.WINDOW_LAYERS,
        fields.irrelevant("another name of num_experts_per_tok", "experts_per_token"),
        fields.irrelevant("transformers reads rope_parameters", "initial_context_length"),
        fields.fixed(hidden_act="silu", attention_bias=True, swiglu_alpha=1.702),
        fields.defaults(activation_func="quick_gelu", glu_linear_offset=1.0),
        # megatron-core 0.19 does not shard experts that have biases.
        fields.defaults(add_bias_linear=True, expert_tensor_parallel_size=1, softmax_type="learnable"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=True, output_bias=True, sinks="sinks"),
            *blocks.fused_moe(bias=True, transposed=True, interleaved=True),
        )
