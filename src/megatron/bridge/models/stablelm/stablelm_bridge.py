"""StableLM 2 and StableLM 3B."""

from dataclasses import replace

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import ConcatenatedMapping


@MegatronModelBridge.register_bridge(source="StableLmForCausalLM", target="GPTModel", model_type="stablelm")
class StableLmBridge(MegatronModelBridge):
    """LayerNorm and rope on part of each head; attention and MLP may be side by side, and each head may have norms."""

    CONFIG = (
        *fields.decoder(rms_norm_eps="layer_norm_eps", head_dim=None),
        fields.USUAL_HEAD_DIM,
        fields.PARTIAL_ROPE,
        fields.same("qk_layernorm", use_qkv_bias="add_qkv_bias", use_parallel_residual="parallel_attention_and_mlp"),
        # Megatron has one dropout for the outputs of attention and MLP; transformers applies it to the MLP's alone.
        replace(fields.same("hidden_dropout"), fixed={"hidden_dropout": 0}),
        fields.not_read("norm_eps", "rope_pct", "rotary_scaling_factor"),
        fields.defaults(normalization="LayerNorm", qk_layernorm_scope="separate_heads"),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        mlp_norm = None if config.use_parallel_residual else "post_attention_layernorm"
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, norm_bias=True),
            *blocks.pre_norms(mlp=mlp_norm, bias=True),
            *blocks.attention(qkv_bias=config.use_qkv_bias),
            *(self._head_norms() if config.qk_layernorm else ()),
            *blocks.gated_mlp(),
        )

    def _head_norms(self) -> list[ConcatenatedMapping]:
        num_heads = {"q": self.hf_config.num_attention_heads, "k": self.hf_config.num_key_value_heads}
        return [
            ConcatenatedMapping(
                f"{blocks.LAYER}.self_attention.{role}_layernorm.weight",
                [f"model.layers.*.self_attn.{role}_layernorm.norms.{head}.weight" for head in range(num)],
            )
            for role, num in num_heads.items()
        ]
