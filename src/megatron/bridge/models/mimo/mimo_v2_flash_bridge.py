"""MiMo-V2-Flash."""

from dataclasses import replace

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields

# Fields of the published config.json that its own code reads and transformers does not, each with the value with which
# transformers computes. A file with another value describes another model.
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


def _check_published(hf_config: fields.HFConfig) -> fields.Values:
    if not all("partial_rotary_factor" in kind for kind in hf_config.rope_parameters.values()):
        raise UnsupportedConfigError("rope_parameters must state partial_rotary_factor for each kind")
    stated = {name: value for name, value in _PUBLISHED.items() if getattr(hf_config, name, None) is not None}
    fields.check_values(hf_config, {name: (value(hf_config),) for name, value in stated.items()})
    return {}


def _window_attention(hf_config: fields.HFConfig) -> fields.Values:
    return {"window_attention": {"num_query_groups": 2 * hf_config.num_key_value_heads, "softmax_type": "learnable"}}


def _window_values(provider: fields.Provider) -> fields.Values:
    values = fields.WINDOW_LAYERS.to_hf(provider) if fields.WINDOW_LAYERS.to_hf else {}
    # Without a window, no layer reads its size, but the config class requires a number.
    return {name: value for name, value in values.items() if value is not None}


@MegatronModelBridge.register_bridge(source="MiMoV2FlashForCausalLM", target="GPTModel", model_type="mimo_v2_flash")
class MiMoV2FlashBridge(MegatronModelBridge):
    """DeepSeek-V3's experts; layers with a window have twice the key-value heads, sinks, and another rope."""

    PROVIDER_CLASS = "megatron.bridge.models.mimo.modeling_mimo_v2_flash.MiMoV2FlashProvider"
    CONFIG = (
        *fields.DECODER,
        fields.rope(partial=True, by_kind=True),
        *fields.DEEPSEEK_SIZES,
        fields.expert_layers("mlp_layer_types"),
        fields.GROUPED_SIGMOID_ROUTER,
        fields.same("v_head_dim", attention_bias="add_qkv_bias", attention_value_scale="value_multiplier"),
        replace(fields.WINDOW_LAYERS, to_hf=_window_values),
        fields.Part(reads=tuple(_PUBLISHED), to_provider=_check_published),
        fields.Part(to_provider=_window_attention),
        fields.turned_into("sliding_window", "sliding_window_size"),
        fields.irrelevant("transformers does not compute with it", "num_nextn_predict_layers"),
        fields.not_read("attention_chunk_size"),
        fields.fixed(scoring_func="sigmoid", topk_method="noaux_tc"),
        fields.fixed(add_swa_attention_sink_bias=True, add_full_attention_sink_bias=False),
        fields.defaults(hetereogenous_dist_checkpoint=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=config.attention_bias, heads_differ=True, sinks="attention_sink_bias"),
            *blocks.gated_mlp(),
            *blocks.moe(router_bias="gate.e_score_correction_bias"),
            *blocks.no_multi_token_prediction(hf="model.mtp"),
        )
