"""Nemotron-H and Nemotron 3: layers of Mamba-2, attention, MLP and experts."""

from dataclasses import replace

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.nemotron.prediction_layers import prediction_layers

# Megatron's names for the norm in front of each kind of layer.
_NORMS = (
    "mixer.in_proj.layer_norm_weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.weight",
)


@MegatronModelBridge.register_bridge(source="NemotronHForCausalLM", target="HybridModel", model_type="nemotron_h")
class NemotronHBridge(MegatronModelBridge):
    """Each layer is one of four kinds (`layers_block_type`), behind one norm; there is no position embedding."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG = (
        *fields.decoder(
            rms_norm_eps="layer_norm_epsilon", hidden_act="mlp_hidden_act", num_hidden_layers=None, rope_parameters=None
        ),
        # transformers does not tie them, whatever the config says.
        replace(
            fields.same(tie_word_embeddings="share_embeddings_and_output_weights"), fixed={"tie_word_embeddings": False}
        ),
        *fields.DEEPSEEK_SIZES,
        fields.GROUPED_SIGMOID_ROUTER,
        fields.same("moe_shared_expert_intermediate_size", "moe_latent_size", "hidden_dropout"),
        fields.mamba("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "chunk_size"),
        fields.same(time_step_min="mamba_dt_min"),
        *fields.LAYER_KINDS,
        fields.PREDICTION_LAYERS,
        fields.irrelevant("the mixer's width is mamba_num_heads * mamba_head_dim", "expand"),
        fields.irrelevant("initialisation", "time_step_max", "time_step_floor", "rescale_prenorm_residual"),
        fields.irrelevant("generation", "mamba_ssm_cache_dtype", "num_logits_to_keep"),
        fields.irrelevant("how the HF model is executed", "use_mamba_kernels", "moe_shared_expert_overlap"),
        fields.not_read("time_step_limit", "time_step_rank", "sliding_window", "n_shared_experts"),
        fields.fixed(attention_bias=False, mlp_bias=False, use_bias=False, mamba_proj_bias=False, use_conv_bias=True),
        fields.fixed(mamba_hidden_act="silu", conv_kernel=4, residual_in_fp32=False),
        fields.defaults(gated_linear_unit=False, moe_router_pre_softmax=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        layer = self._layer()
        return MegatronMappingRegistry(
            *blocks.backbone_embeddings(tied=config.tie_word_embeddings),
            *layer,
            *prediction_layers(layer, config),
            *blocks.no_multi_token_prediction(),
        )

    def _layer(self) -> blocks.Mappings:
        """The mappings of a layer of any kind."""
        config, mixer = self.hf_config, "backbone.layers.*.mixer"
        names = (None, "up_proj", "down_proj")
        latent = ("fc1_latent_proj.weight", "fc2_latent_proj.weight")
        return [
            *(AutoMapping(f"{blocks.LAYER}.{norm}", "backbone.layers.*.norm.weight") for norm in _NORMS),
            *blocks.mamba(
                hf=mixer,
                num_heads=config.mamba_num_heads,
                head_dim=config.mamba_head_dim,
                num_groups=config.n_groups,
                state_size=config.ssm_state_size,
            ),
            *blocks.attention(hf=mixer),
            *blocks.mlp(hf=mixer),
            *blocks.moe(hf=mixer, names=names, router_bias="gate.e_score_correction_bias", shared="shared_experts"),
            *blocks.parts(blocks.MLP, mixer, latent),
        ]
