"""The mappings that only Gemma 4 has."""

from typing import TYPE_CHECKING, cast

from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.param_mapping import Dropped, LayerQKVMapping, MegatronParamMapping
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    from megatron.bridge.models.gemma.modeling_gemma4_config import Gemma4Config
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig


def experts() -> blocks.Mappings:
    """Router, experts, the dense MLP beside them, and their norms."""
    names = {
        "pre_dense_layernorm.weight": "pre_feedforward_layernorm.weight",
        "post_dense_layernorm.weight": "post_feedforward_layernorm_1.weight",
        "pre_experts_layernorm.weight": "pre_feedforward_layernorm_2.weight",
        "post_experts_layernorm.weight": "post_feedforward_layernorm_2.weight",
        "router.scale": "router.scale",
        "router.per_expert_scale": "router.per_expert_scale",
    }
    return [
        *blocks.parts(blocks.MLP, blocks.HF_LAYER, names),
        *blocks.fused_moe(hf=blocks.HF_LAYER, router="router.proj", shared="mlp"),
    ]


def attention_without_own_values(config: fields.HFConfig) -> blocks.Mappings:
    """`linear_qkv` of layers whose values are their keys, and of those that use the keys and values of others."""
    mappings: blocks.Mappings = []
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    for layer, layer_type in enumerate(config.layer_types):
        is_shared = layer >= first_shared
        if not is_shared and not (config.attention_k_eq_v and layer_type == "full_attention"):
            continue
        param, hf = f"decoder.layers.{layer}.self_attention.linear_qkv", f"model.layers.{layer}.self_attn"
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            names = {role: f"{hf}.{role}_proj.{kind}" for role in ("q", "k")[: 1 if is_shared else 2]}
            mappings.append(LayerQKVMapping(f"{param}.{kind}", **names))
        if is_shared:
            names_of_kv = ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight")
            reason = "the layer uses the keys and values of an earlier one, as in transformers"
            mappings += [Dropped(f"{hf}.{name}", reason) for name in names_of_kv]
    return mappings


def inputs_per_layer() -> blocks.Mappings:
    """The embeddings that each layer reads besides hidden states, and the layer's modules for them."""
    model = {
        "projection.weight": "per_layer_model_projection.weight",
        "layernorm.weight": "per_layer_projection_norm.weight",
    }
    layer = {
        "gate.weight": "per_layer_input_gate.weight",
        "projection.weight": "per_layer_projection.weight",
        "post_layernorm.weight": "post_per_layer_input_norm.weight",
    }
    return [
        PerLayerTableMapping("per_layer_embedding.word_embeddings.weight", "model.embed_tokens_per_layer.weight"),
        *blocks.parts("per_layer_embedding", "model", model),
        *blocks.parts(f"{blocks.LAYER}.per_layer_input", blocks.HF_LAYER, layer),
    ]


class PerLayerTableMapping(MegatronParamMapping):
    """A table with a row for each token, followed by rows of zeros."""

    def layout(self, shape: Shape, config: "DecoderConfig") -> layouts.Layout:
        return layouts.padded(shape, 0, cast("Gemma4Config", config).vocab_size_per_layer_input)
