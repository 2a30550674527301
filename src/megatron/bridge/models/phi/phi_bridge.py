"""Phi-1, Phi-1.5 and Phi-2."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


def _check_rotary_dim(hf_config: fields.HFConfig) -> fields.Values:
    stated, head_dim = getattr(hf_config, "rotary_dim", None), hf_config.hidden_size // hf_config.num_attention_heads
    computed = int(head_dim * hf_config.rope_parameters.get("partial_rotary_factor", 1.0))
    if stated not in (None, computed):
        raise UnsupportedConfigError(
            f"rotary_dim is {stated}, but partial_rotary_factor, which transformers reads, rotates {computed} "
            f"of the {head_dim} dimensions of a head"
        )
    return {}


@MegatronModelBridge.register_bridge(source="PhiForCausalLM", target="GPTModel", model_type="phi")
class PhiBridge(MegatronModelBridge):
    """Attention and MLP side by side behind one LayerNorm, biases everywhere, and rope on part of each head."""

    CONFIG = (
        *fields.decoder(rms_norm_eps="layer_norm_eps"),
        fields.PARTIAL_ROPE,
        fields.same("qk_layernorm", resid_pdrop="hidden_dropout", embd_pdrop="embedding_dropout"),
        fields.Part(reads=("rotary_dim",), to_provider=_check_rotary_dim),
        fields.defaults(normalization="LayerNorm", gated_linear_unit=False, parallel_attention_and_mlp=True),
        fields.defaults(add_bias_linear=True, lm_head_bias=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(
                tied=config.tie_word_embeddings, norm="final_layernorm", norm_bias=True, lm_head_bias=True
            ),
            *blocks.pre_norms(mlp=None, bias=True),
            *blocks.attention(
                qkv_bias=True,
                output_bias=True,
                output="dense",
                qk_norm=config.qk_layernorm,
                qk_norm_bias=True,
                qk_norm_names=("q_layernorm", "k_layernorm"),
            ),
            *blocks.mlp(up="fc1", down="fc2", bias=True),
        )
