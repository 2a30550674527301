"""EXAONE 4.0."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Exaone4ForCausalLM", target="GPTModel", model_type="exaone4")
class Exaone4Bridge(MegatronModelBridge):
    """Norms behind attention and MLP, and of q and k; if some layers have windows, the others have no rope."""

    CONFIG = (
        *fields.DECODER,
        fields.WINDOW_LAYERS,
        fields.ROPE_IN_WINDOWS,
        fields.defaults(use_pre_norms=False, use_post_norms=True, qk_layernorm=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.post_norms(),
            *blocks.attention(qk_norm=True),
            *blocks.gated_mlp(),
        )
