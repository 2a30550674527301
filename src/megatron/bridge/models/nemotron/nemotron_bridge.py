"""Nemotron-3, Nemotron-4 and Minitron (dense)."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="NemotronForCausalLM", target="GPTModel", model_type="nemotron")
class NemotronBridge(MegatronModelBridge):
    """Zero-centred LayerNorm, an MLP with a squared ReLU and no gate, and rope on part of each head."""

    CONFIG = (
        *fields.decoder(rms_norm_eps="norm_eps"),
        fields.PARTIAL_ROPE,
        fields.ATTENTION_BIAS,
        fields.same("mlp_bias"),
        fields.defaults(normalization="LayerNorm", layernorm_zero_centered_gamma=True, gated_linear_unit=False),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, norm_bias=True),
            *blocks.pre_norms(bias=True),
            *blocks.attention(qkv_bias=config.attention_bias, output_bias=config.attention_bias),
            *blocks.mlp(bias=config.mlp_bias),
        )
