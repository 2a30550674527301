"""Falcon-H1: attention and Mamba-2 side by side in each layer."""

from dataclasses import replace
from math import sqrt

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


def _scale(hf_config: fields.HFConfig) -> fields.Values:
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    # Multiplying all keys multiplies all scores.
    return {"softmax_scale": hf_config.key_multiplier / sqrt(head_dim)}


def _scale_and_width(provider: fields.Provider) -> fields.Values:
    head_dim = provider.kv_channels or provider.hidden_size // provider.num_attention_heads
    return {
        "mamba_d_ssm": fields.mixer_width(provider),
        # Without the last digits, which are rounding errors.
        "key_multiplier": float(f"{provider.softmax_scale * sqrt(head_dim):.14g}"),
    }


@MegatronModelBridge.register_bridge(source="FalconH1ForCausalLM", target="GPTModel", model_type="falcon_h1")
class FalconH1Bridge(MegatronModelBridge):
    """The mixer is part of the attention module, whose norm and residual it shares; multipliers are fields."""

    PROVIDER_CLASS = "megatron.bridge.models.falcon.modeling_falcon_h1.FalconH1Provider"
    CONFIG = (
        *fields.decoder(hidden_act=None),
        replace(fields.activation(), fixed={"hidden_act": "silu"}),
        fields.mamba("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_chunk_size"),
        fields.same("mamba_rms_norm", "mamba_norm_before_gate"),
        fields.same("attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier"),
        fields.same(
            "ssm_multipliers", "mlp_multipliers", "embedding_multiplier", lm_head_multiplier="logits_multiplier"
        ),
        fields.STEP_LIMIT,
        fields.Part(
            reads=("key_multiplier", "mamba_d_ssm", "mamba_expand"), to_provider=_scale, to_hf=_scale_and_width
        ),
        fields.irrelevant("generation", "num_logits_to_keep"),
        fields.not_read("layer_types", "layers_block_type", "sliding_window"),
        fields.fixed(attention_bias=False, mlp_bias=False, projectors_bias=False),
        fields.fixed(mamba_proj_bias=False, mamba_conv_bias=True, mamba_d_conv=4),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings, norm="final_layernorm"),
            *blocks.pre_norms(mlp="pre_ff_layernorm"),
            *blocks.attention(),
            *blocks.mamba(
                hf="model.layers.*.mamba",
                megatron="self_attention.mixer",
                num_heads=config.mamba_n_heads,
                head_dim=config.mamba_d_head,
                num_groups=config.mamba_n_groups,
                state_size=config.mamba_d_state,
                norm=config.mamba_rms_norm,
            ),
            *blocks.gated_mlp(hf="model.layers.*.feed_forward"),
        )
