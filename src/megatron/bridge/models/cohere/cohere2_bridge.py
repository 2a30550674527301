"""Command R7B and Command A (Cohere 2)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


def _no_rope(hf_config: fields.HFConfig) -> fields.Values:
    has_window = hf_config.sliding_window is not None
    return {"no_rope_freq": [int(kind == "full_attention" or not has_window) for kind in hf_config.layer_types]}


@MegatronModelBridge.register_bridge(source="Cohere2ForCausalLM", target="GPTModel", model_type="cohere2")
class Cohere2Bridge(MegatronModelBridge):
    """Attention and MLP side by side behind one LayerNorm without bias; rope only in layers with a window."""

    CONFIG = (
        *fields.decoder(rms_norm_eps="layer_norm_eps"),
        fields.ATTENTION_BIAS,
        fields.same(logit_scale="logits_multiplier"),
        fields.WINDOW_LAYERS,
        fields.Part(to_provider=_no_rope),
        fields.not_read("layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct"),
        fields.not_read(
            "use_embedding_sharing", "use_gated_activation", "use_parallel_block", "use_parallel_embedding"
        ),
        fields.defaults(
            normalization="LayerNorm", norm_bias=False, parallel_attention_and_mlp=True, rotary_interleaved=True
        ),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(mlp=None),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(),
        )
