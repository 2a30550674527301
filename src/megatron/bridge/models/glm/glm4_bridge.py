"""GLM-4-0414 (dense)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Glm4ForCausalLM", target="GPTModel", model_type="glm4")
class Glm4Bridge(MegatronModelBridge):
    """Norms on both sides of attention and MLP, and rope that rotates neighbouring dimensions of part of each head."""

    CONFIG = (
        *fields.DECODER,
        fields.PARTIAL_ROPE,
        fields.same(attention_bias="add_qkv_bias"),
        fields.defaults(use_post_norms=True, rotary_interleaved=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.post_norms(attention="post_self_attn_layernorm", mlp="post_mlp_layernorm"),
            *blocks.attention(qkv_bias=self.hf_config.attention_bias),
            *blocks.gated_mlp(fused_gate_up="gate_up_proj"),
        )
