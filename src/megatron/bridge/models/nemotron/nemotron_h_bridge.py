"""Nemotron-H and Nemotron 3: layers of Mamba-2, attention, MLP and experts."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
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


@MegatronModelBridge.register_bridge(source="NemotronHForCausalLM", target="HybridModel", model_type="nemotron_h")
class NemotronHBridge(MegatronModelBridge):
    """Each layer is one of four kinds (`layers_block_type`), with one norm in front; there is no position embedding."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG_MAPPING = {
        **{
            hf: ours
            for hf, ours in config_mapping.decoder_fields(rms_norm_eps="layer_norm_epsilon").items()
            if hf not in ("rope_parameters", "num_hidden_layers")
        },
        **moe_config.DEEPSEEK_FIELDS,
        "moe_shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
        "hidden_dropout": "hidden_dropout",
        "ssm_state_size": "mamba_state_dim",
        "mamba_num_heads": "mamba_num_heads",
        "mamba_head_dim": "mamba_head_dim",
        "n_groups": "mamba_num_groups",
        "chunk_size": "mamba_chunk_size",
        "time_step_min": "mamba_dt_min",
        "moe_latent_size": "moe_latent_size",
    }
    CONFIG_CHECKED = (
        *("layers_block_type", "mlp_hidden_act", "num_nextn_predict_layers", "mtp_layers_block_type"),
        *moe_config.GROUPED_SIGMOID_FIELDS,
    )
    CONFIG_IRRELEVANT = {
        "num_hidden_layers": "the length of layers_block_type",
        "hybrid_override_pattern": "transformers turns it into layers_block_type",
        "expand": "the mixer's width is mamba_num_heads * mamba_head_dim",
        "time_step_max": "initialisation",
        "time_step_floor": "initialisation",
        "rescale_prenorm_residual": "initialisation",
        "mamba_ssm_cache_dtype": "generation",
        "num_logits_to_keep": "generation",
        "use_mamba_kernels": "kernel choice of the HF model",
        "moe_shared_expert_overlap": "order of execution",
        "output_router_logits": "what the HF model returns",
        **config_mapping.not_read("time_step_limit", "sliding_window", "n_shared_experts"),
    }
    CONFIG_FIXED = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_bias": False,
        "mamba_proj_bias": False,
        "use_conv_bias": True,
        "mamba_hidden_act": "silu",
        "conv_kernel": 4,
        "residual_in_fp32": False,
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "gated_linear_unit": False,
        "moe_router_pre_softmax": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "NemotronHConfig") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        pattern = _pattern(hf_config.layers_block_type)
        fields |= {**moe_config.grouped_sigmoid_fields(hf_config), **moe_config.mtp_fields(hf_config)}
        return fields | {
            "mtp_hybrid_override_pattern": _pattern(hf_config.mtp_layers_block_type),
            "num_layers": len(pattern),
            "hybrid_layer_pattern": pattern,
            "activation_func": config_mapping.activation_function(hf_config.mlp_hidden_act, self._where(hf_config)),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.grouped_sigmoid_values(provider),
            **moe_config.mtp_values(provider),
            "layers_block_type": _kinds(provider.hybrid_layer_pattern),
            "mtp_layers_block_type": _kinds(provider.mtp_hybrid_override_pattern),
            "mlp_hidden_act": config_mapping.activation_name(provider.activation_func),
        }

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


def _pattern(kinds: list[str]) -> str:
    return "".join(_LAYER_LETTERS[kind] for kind in kinds)


def _kinds(pattern: str) -> list[str]:
    kinds = {letter: kind for kind, letter in _LAYER_LETTERS.items()}
    return [kinds[letter] for letter in pattern.replace("|", "")]
