"""MiMo-V2-Flash."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import MiMoV2FlashConfig

# Fields of the published config.json that its own code reads and transformers does not, with what transformers
# computes instead: a file that says something else describes another model.
_PUBLISHED = {
    "hybrid_layer_pattern": lambda config: [int(kind == "sliding_attention") for kind in config.layer_types],
    "moe_layer_freq": lambda config: [int(kind == "sparse") for kind in config.mlp_layer_types],
    "swa_num_attention_heads": lambda config: config.num_attention_heads,
    "swa_num_key_value_heads": lambda config: 2 * config.num_key_value_heads,
    "swa_head_dim": lambda config: config.head_dim,
    "swa_v_head_dim": lambda config: config.v_head_dim,
    "rope_theta": lambda config: config.rope_parameters["full_attention"]["rope_theta"],
    "swa_rope_theta": lambda config: config.rope_parameters["sliding_attention"]["rope_theta"],
    "partial_rotary_factor": lambda config: config.rope_parameters["full_attention"]["partial_rotary_factor"],
    "layernorm_epsilon": lambda config: config.rms_norm_eps,
}


@MegatronModelBridge.register_bridge(source="MiMoV2FlashForCausalLM", target="GPTModel", model_type="mimo_v2_flash")
class MiMoV2FlashBridge(MegatronModelBridge):
    """DeepSeek-V3's experts; layers with a window have twice the key-value heads, sinks and a rope of their own."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        **moe_config.DEEPSEEK_FIELDS,
        "attention_bias": "add_qkv_bias",
        "v_head_dim": "v_head_dim",
        "attention_value_scale": "value_multiplier",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *moe_config.GROUPED_SIGMOID_FIELDS,
        *("mlp_layer_types", "sliding_window", "layer_types"),
        *_PUBLISHED,
    )
    CONFIG_IRRELEVANT = {
        "output_router_logits": "what the HF model returns",
        "sliding_window_size": "transformers turns it into sliding_window",
        "num_nextn_predict_layers": "transformers does not compute with it",
        **config_mapping.not_read("attention_chunk_size"),
    }
    CONFIG_FIXED = {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "hetereogenous_dist_checkpoint": True,
    }
    PROVIDER_CLASS = "megatron.bridge.models.mimo.modeling_mimo_v2_flash.MiMoV2FlashProvider"

    def hf_config_to_provider_kwargs(self, hf_config: "MiMoV2FlashConfig") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        where = self._where(hf_config)
        if not all("partial_rotary_factor" in kind for kind in hf_config.rope_parameters.values()):
            raise UnsupportedConfigError(f"{where}: rope_parameters must state partial_rotary_factor for each kind")
        stated = {name: value for name, value in _PUBLISHED.items() if getattr(hf_config, name, None) is not None}
        config_mapping.check_values(hf_config, where, **{name: (value(hf_config),) for name, value in stated.items()})
        return {
            **fields,
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.grouped_sigmoid_fields(hf_config),
            "window_attention": {
                "num_query_groups": 2 * hf_config.num_key_value_heads,
                "softmax_type": "learnable",
            },
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        values = {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **moe_config.grouped_sigmoid_values(provider),
        }
        if provider.window_size is None:
            del values["sliding_window"]  # no layer reads it, and the config class wants a number
        return values

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, heads_differ=True, sinks="attention_sink_bias"),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias=blocks.DEEPSEEK_ROUTER_BIAS),
            *blocks.no_multi_token_prediction(hf="model.mtp"),
        )
