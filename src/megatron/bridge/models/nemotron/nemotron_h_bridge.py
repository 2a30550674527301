"""Nemotron-H and Nemotron 3: layers of Mamba-2, attention, MLP and experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.nemotron.prediction_layers import prediction_layers

if TYPE_CHECKING:
    from transformers import NemotronHConfig

_LAYER_LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
# Megatron's names of the norm in front of each kind of layer.
_NORMS = (
    "mixer.in_proj.layer_norm_weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.weight",
)


def _pattern(kinds: list[str]) -> str:
    return "".join(_LAYER_LETTERS[kind] for kind in kinds)


def _kinds(pattern: str) -> list[str]:
    kinds = {letter: kind for kind, letter in _LAYER_LETTERS.items()}
    return [kinds[letter] for letter in pattern.replace("|", "")]


def _patterns(hf_config: "NemotronHConfig") -> dict[str, Any]:
    pattern = _pattern(hf_config.layers_block_type)
    return {
        "num_layers": len(pattern),
        "hybrid_layer_pattern": pattern,
        "mtp_hybrid_override_pattern": _pattern(hf_config.mtp_layers_block_type),
    }


def _kinds_of_provider(provider: Any) -> dict[str, Any]:
    return {
        "layers_block_type": _kinds(provider.hybrid_layer_pattern),
        "mtp_layers_block_type": _kinds(provider.mtp_hybrid_override_pattern),
    }


@MegatronModelBridge.register_bridge(source="NemotronHForCausalLM", target="HybridModel", model_type="nemotron_h")
class NemotronHBridge(MegatronModelBridge):
    """Each layer is one of four kinds (`layers_block_type`), with one norm in front; there is no position embedding."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG = (
        *fields.decoder(
            rms_norm_eps="layer_norm_epsilon", hidden_act="mlp_hidden_act", num_hidden_layers=None, rope_parameters=None
        ),
        *fields.DEEPSEEK_SIZES,
        fields.GROUPED_SIGMOID_ROUTER,
        fields.same("moe_shared_expert_intermediate_size", "moe_latent_size", "hidden_dropout"),
        fields.mamba("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "chunk_size"),
        fields.same(time_step_min="mamba_dt_min"),
        fields.PREDICTION_LAYERS,
        fields.Part(
            reads=("layers_block_type", "mtp_layers_block_type"), to_provider=_patterns, to_hf=_kinds_of_provider
        ),
        fields.irrelevant(
            num_hidden_layers="the length of layers_block_type",
            hybrid_override_pattern="transformers turns it into layers_block_type",
            expand="the mixer's width is mamba_num_heads * mamba_head_dim",
            time_step_max="initialisation",
            time_step_floor="initialisation",
            rescale_prenorm_residual="initialisation",
            mamba_ssm_cache_dtype="generation",
            num_logits_to_keep="generation",
            use_mamba_kernels="kernel choice of the HF model",
            moe_shared_expert_overlap="order of execution",
        ),
        fields.not_read("time_step_limit", "sliding_window", "n_shared_experts"),
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
        """A layer of any kind."""
        config, mixer = self.hf_config, blocks.BACKBONE_MIXER
        names = (None, "up_proj", "down_proj")
        latent = ("fc1_latent_proj.weight", "fc2_latent_proj.weight")
        return [
            *(AutoMapping(f"{blocks.LAYER}.{norm}", blocks.BACKBONE_NORM) for norm in _NORMS),
            *blocks.mamba(
                hf=mixer,
                num_heads=config.mamba_num_heads,
                head_dim=config.mamba_head_dim,
                num_groups=config.n_groups,
                state_size=config.ssm_state_size,
            ),
            *blocks.attention(hf=mixer),
            *blocks.mlp(hf=mixer),
            *blocks.moe(hf=mixer, names=names, router_bias=blocks.DEEPSEEK_ROUTER_BIAS, shared="shared_experts"),
            *blocks.parts(blocks.MLP, mixer, latent),
        ]
