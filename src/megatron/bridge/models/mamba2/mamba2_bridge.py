"""Mamba-2 (arXiv 2405.21060): no attention, no MLP."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping

if TYPE_CHECKING:
    from transformers import Mamba2Config


@MegatronModelBridge.register_bridge(source="Mamba2ForCausalLM", target="HybridModel", model_type="mamba2")
class Mamba2Bridge(MegatronModelBridge):
    """Every layer is a Mamba-2 mixer."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG_MAPPING = {
        "num_hidden_layers": "num_layers",
        "hidden_size": "hidden_size",
        "vocab_size": "vocab_size",
        "layer_norm_epsilon": "layernorm_epsilon",
        "initializer_range": "init_method_std",
        "tie_word_embeddings": "share_embeddings_and_output_weights",
        # megatron-core asks for attention heads that tensor parallelism divides, though no layer has attention.
        "num_heads": ("mamba_num_heads", "num_attention_heads", "num_query_groups"),
        "head_dim": ("mamba_head_dim", "kv_channels"),
        "state_size": "mamba_state_dim",
        "n_groups": "mamba_num_groups",
        "chunk_size": "mamba_chunk_size",
    }
    CONFIG_CHECKED = ("time_step_limit", "expand")
    CONFIG_IRRELEVANT = {
        **dict.fromkeys(
            ("time_step_min", "time_step_max", "time_step_floor", "time_step_rank", "rescale_prenorm_residual"),
            "initialisation",
        ),
        "residual_in_fp32": "precision of the residual stream, the same in float32",
        **config_mapping.not_read("norm_before_gate", "rms_norm"),
    }
    CONFIG_FIXED = {"use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "conv_kernel": 4}
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "gated_linear_unit": False}

    def hf_config_to_provider_kwargs(self, hf_config: "Mamba2Config") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        limit = config_mapping.step_limit_fields(hf_config, self._where(hf_config))
        return {**fields, **limit, "hybrid_layer_pattern": "M" * hf_config.num_hidden_layers}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.step_limit_values(provider),
            "expand": provider.mamba_num_heads * provider.mamba_head_dim // provider.hidden_size,
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.backbone_embeddings(tied=config.tie_word_embeddings),
            AutoMapping(f"{blocks.LAYER}.mixer.in_proj.layer_norm_weight", blocks.BACKBONE_NORM),
            *blocks.mamba(
                hf=blocks.BACKBONE_MIXER,
                num_heads=config.num_heads,
                head_dim=config.head_dim,
                num_groups=config.n_groups,
                state_size=config.state_size,
            ),
        )
