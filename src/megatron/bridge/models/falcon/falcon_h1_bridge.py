"""Falcon-H1: attention and Mamba-2 side by side in each layer."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import FalconH1Config


@MegatronModelBridge.register_bridge(source="FalconH1ForCausalLM", target="GPTModel", model_type="falcon_h1")
class FalconH1Bridge(MegatronModelBridge):
    """The mixer is a part of the attention module, with which it shares norm and residual; multipliers are fields."""

    PROVIDER_CLASS = "megatron.bridge.models.falcon.modeling_falcon_h1.FalconH1Provider"
    _MULTIPLIERS = (
        *("attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier"),
        *("ssm_multipliers", "mlp_multipliers", "embedding_multiplier"),
    )
    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **{name: name for name in _MULTIPLIERS},
        "lm_head_multiplier": "logits_multiplier",
        "mamba_n_heads": "mamba_num_heads",
        "mamba_d_head": "mamba_head_dim",
        "mamba_n_groups": "mamba_num_groups",
        "mamba_d_state": "mamba_state_dim",
        "mamba_chunk_size": "mamba_chunk_size",
        "mamba_rms_norm": "mamba_rms_norm",
        "mamba_norm_before_gate": "mamba_norm_before_gate",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *("key_multiplier", "time_step_limit", "mamba_d_ssm", "mamba_expand"),
    )
    CONFIG_IRRELEVANT = {
        "num_logits_to_keep": "generation",
        **config_mapping.not_read("layer_types", "layers_block_type", "sliding_window"),
    }
    CONFIG_FIXED = {
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_proj_bias": False,
        "projectors_bias": False,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "hidden_act": "silu",
    }

    def hf_config_to_provider_kwargs(self, hf_config: "FalconH1Config") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        head_dim = fields.get("kv_channels") or hf_config.hidden_size // hf_config.num_attention_heads
        return {
            **fields,
            **config_mapping.step_limit_fields(hf_config, self._where(hf_config)),
            # A factor of all keys is one of all scores.
            "softmax_scale": hf_config.key_multiplier / sqrt(head_dim),
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        head_dim = provider.kv_channels or provider.hidden_size // provider.num_attention_heads
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.step_limit_values(provider),
            "mamba_d_ssm": provider.mamba_num_heads * provider.mamba_head_dim,
            # All but the last digits, which no config has.
            "key_multiplier": float(f"{provider.softmax_scale * sqrt(head_dim):.14g}"),
        }

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
