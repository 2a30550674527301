"""Mamba-2 (arXiv 2405.21060): no attention, no MLP."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import AutoMapping


@MegatronModelBridge.register_bridge(source="Mamba2ForCausalLM", target="HybridModel", model_type="mamba2")
class Mamba2Bridge(MegatronModelBridge):
    """Every layer is a Mamba-2 mixer."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG = (
        *fields.decoder(
            rms_norm_eps="layer_norm_epsilon", intermediate_size=None, num_attention_heads=None,
            num_key_value_heads=None, head_dim=None, max_position_embeddings=None, attention_dropout=None,
            hidden_act=None, rope_parameters=None,
        ),
        fields.mamba("num_heads", "head_dim", "n_groups", "state_size", "chunk_size"),
        # megatron-core requires attention heads that tensor parallelism divides, although no layer has attention.
        fields.same(
            num_heads=("mamba_num_heads", "num_attention_heads", "num_query_groups"),
            head_dim=("mamba_head_dim", "kv_channels"),
        ),
        fields.STEP_LIMIT,
        fields.Part(
            reads=("expand",),
            to_provider=lambda hf_config: {"hybrid_layer_pattern": "M" * hf_config.num_hidden_layers},
            to_hf=lambda provider: {"expand": fields.mixer_width(provider) // provider.hidden_size},
        ),
        fields.irrelevant("initialisation", "time_step_min", "time_step_max", "time_step_floor", "time_step_rank"),
        fields.irrelevant("initialisation", "rescale_prenorm_residual"),
        fields.irrelevant("precision of the residual stream, the same in float32", "residual_in_fp32"),
        fields.not_read("norm_before_gate", "rms_norm"),
        fields.fixed(use_bias=False, use_conv_bias=True, hidden_act="silu", conv_kernel=4),
        fields.defaults(gated_linear_unit=False),
    )  # fmt: skip

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.backbone_embeddings(tied=config.tie_word_embeddings),
            AutoMapping(f"{blocks.LAYER}.mixer.in_proj.layer_norm_weight", "backbone.layers.*.norm.weight"),
            *blocks.mamba(
                hf="backbone.layers.*.mixer",
                num_heads=config.num_heads,
                head_dim=config.head_dim,
                num_groups=config.n_groups,
                state_size=config.state_size,
            ),
        )
