"""Llama 4 (text)."""

from dataclasses import replace

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


def _layer_fields(hf_config: fields.HFConfig) -> fields.Values:
    has_rope = [bool(rope) for rope in hf_config.no_rope_layers]
    if [kind == "chunked_attention" for kind in hf_config.layer_types] != has_rope:
        raise UnsupportedConfigError(
            f"layer_types must be chunked_attention just where no_rope_layers is 1, "
            f"found {hf_config.layer_types} and {hf_config.no_rope_layers}"
        )
    if hf_config.attention_chunk_size is None and any(has_rope):
        raise UnsupportedConfigError("chunked_attention needs an attention_chunk_size")
    is_moe = [layer in hf_config.moe_layers for layer in range(hf_config.num_hidden_layers)]
    return {"no_rope_freq": [int(not rope) for rope in has_rope], "moe_layer_freq": fields.moe_layer_freq(is_moe)}


def _layer_values(provider: fields.Provider) -> fields.Values:
    return {
        "moe_layers": [layer for layer, is_moe in enumerate(fields.moe_layers(provider)) if is_moe],
        "no_rope_layers": [1 - no_rope for no_rope in provider.no_rope_freq],
        "layer_types": ["full_attention" if no_rope else "chunked_attention" for no_rope in provider.no_rope_freq],
    }


@MegatronModelBridge.register_bridge(source="Llama4ForCausalLM", target="GPTModel", model_type="llama4_text")
class Llama4Bridge(MegatronModelBridge):
    """Layers with chunked attention and rope, among layers with neither, and one expert per token."""

    PROVIDER_CLASS = "megatron.bridge.models.llama.modeling_llama4.Llama4Provider"
    CONFIG = (
        *fields.DECODER,
        fields.ATTENTION_BIAS,
        fields.experts(num_experts="num_local_experts", moe_intermediate_size=None),
        fields.same(
            intermediate_size=("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
            intermediate_size_mlp="ffn_hidden_size",
            attention_chunk_size="attention_chunk_size",
            use_qk_norm="rope_layer_qk_norm",
            attn_temperature_tuning="attention_temperature_tuning",
            floor_scale="attention_floor_scale",
            attn_scale="attention_scale",
        ),
        replace(fields.same(num_experts_per_tok="moe_router_topk"), fixed={"num_experts_per_tok": 1}),
        fields.Part(
            reads=("moe_layers", "no_rope_layers", "layer_types"), to_provider=_layer_fields, to_hf=_layer_values
        ),
        fields.turned_into("moe_layers", "interleave_moe_layer_step"),
        fields.turned_into("no_rope_layers", "no_rope_layer_interval"),
        fields.irrelevant("training", "router_jitter_noise"),
        fields.irrelevant("another runtime's settings", "for_llm_compressor"),
        fields.defaults(rotary_interleaved=True, moe_router_score_function="sigmoid", moe_apply_probs_on_input=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias, feed_forward = self.hf_config.attention_bias, "model.layers.*.feed_forward"
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(hf=feed_forward),
            *blocks.fused_moe(hf=feed_forward, transposed=True, shared="shared_expert"),
        )
