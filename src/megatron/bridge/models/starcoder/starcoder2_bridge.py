"""StarCoder2."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Starcoder2ForCausalLM", target="GPTModel", model_type="starcoder2")
class Starcoder2Bridge(MegatronModelBridge):
    """LayerNorm, an MLP without a gate, biases everywhere, and a sliding window if the config says so."""

    CONFIG = (
        *fields.decoder(rms_norm_eps="norm_epsilon"),
        fields.WINDOW,
        fields.same("embedding_dropout", use_bias="add_bias_linear", residual_dropout="hidden_dropout"),
        fields.not_read("mlp_type", "norm_type"),
        fields.defaults(normalization="LayerNorm", gated_linear_unit=False),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.use_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings, norm_bias=True),
            *blocks.pre_norms(bias=True),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.mlp(up="c_fc", down="c_proj", bias=bias),
        )
