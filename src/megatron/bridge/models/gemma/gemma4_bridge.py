"""Gemma 4 (text)."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.gemma.gemma4_mappings import attention_without_own_values, experts, inputs_per_layer
from megatron.bridge.models.gemma.gemma_bridge import SCALED_EMBEDDINGS

# HF fields that are read only if `enable_moe_block` is set.
_MOE = {
    "num_experts": "num_moe_experts",
    "top_k_experts": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
}


def _check_shared_layers(hf_config: fields.HFConfig) -> fields.Values:
    first_shared = hf_config.num_hidden_layers - hf_config.num_kv_shared_layers
    if not 0 <= first_shared <= hf_config.num_hidden_layers or set(hf_config.layer_types[:first_shared]) != set(
        hf_config.layer_types
    ):
        raise UnsupportedConfigError(
            f"num_kv_shared_layers is {hf_config.num_kv_shared_layers}, but some of "
            f"these have no earlier layer of their kind to share with; layer_types: {hf_config.layer_types}"
        )
    return {}


def _expert_fields(hf_config: fields.HFConfig) -> fields.Values:
    if not hf_config.enable_moe_block:
        return {}
    missing = [name for name in _MOE if getattr(hf_config, name) is None]
    if missing:
        raise UnsupportedConfigError(f"enable_moe_block needs {', '.join(missing)}")
    return {
        **fields.MOE_DEFAULTS,
        **fields.mapped_fields(hf_config, _MOE),
        "moe_router_pre_softmax": True,
        "moe_router_renormalize": True,
        "moe_shared_expert_intermediate_size": hf_config.intermediate_size,
    }


def _expert_values(provider: fields.Provider) -> fields.Values:
    has_experts = provider.num_moe_experts is not None
    return {"enable_moe_block": has_experts, **(fields.mapped_values(provider, _MOE) if has_experts else {})}


@MegatronModelBridge.register_bridge(source="Gemma4ForCausalLM", target="GPTModel", model_type="gemma4_text")
class Gemma4Bridge(MegatronModelBridge):
    """Like Gemma 3, with plain norms, a norm of v, other heads in layers with a window, and a scale for each layer.

    Layers may also read embeddings of their own, use the keys and values of earlier layers, and have experts.
    """

    PROVIDER_CLASS = "megatron.bridge.models.gemma.modeling_gemma4.Gemma4Provider"
    CONFIG = (
        *fields.decoder(hidden_act="hidden_activation"),
        fields.ROPE_BY_KIND,
        fields.ATTENTION_BIAS,
        fields.same(
            "final_logit_softcapping", "num_kv_shared_layers", "use_double_wide_mlp", "hidden_size_per_layer_input"
        ),
        fields.same("vocab_size_per_layer_input", attention_k_eq_v="full_attention_k_eq_v"),
        fields.WINDOW_LAYERS,
        SCALED_EMBEDDINGS,
        fields.Part(reads=("enable_moe_block", *_MOE), to_provider=_expert_fields, to_hf=_expert_values),
        fields.HEADS_BY_KIND,
        fields.Part(to_provider=_check_shared_layers),
        fields.fixed(use_bidirectional_attention=None),
        fields.defaults(norm_weight_in_fp32=True, use_post_norms=True, qk_layernorm=True, softmax_scale=1.0),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(mlp=None if config.enable_moe_block else "pre_feedforward_layernorm"),
            *blocks.post_norms(),
            *attention_without_own_values(config),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, heads_differ=True),
            *(experts() if config.enable_moe_block else blocks.gated_mlp()),
            *(inputs_per_layer() if config.hidden_size_per_layer_input else []),
            AutoMapping(f"{blocks.LAYER}.layer_scalar", f"{blocks.HF_LAYER}.layer_scalar"),
        )
