"""Mixtral."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="MixtralForCausalLM", target="GPTModel", model_type="mixtral")
class MixtralBridge(MegatronModelBridge):
    """Like Mistral, with experts instead of every MLP; the softmax is over the chosen experts."""

    CONFIG = (
        *fields.DECODER,
        fields.LOCAL_EXPERTS,
        fields.WINDOW,
        fields.irrelevant("training", "router_jitter_noise"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(),
            *blocks.moe(hf="model.layers.*.block_sparse_moe", names=("w1", "w3", "w2")),
        )
