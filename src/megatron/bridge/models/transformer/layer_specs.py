"""Layer specs: Transformer Engine where it can run, megatron-core's own modules elsewhere. The choice is made here."""

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from megatron.core.extensions import transformer_engine
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_linear_attention_pattern,
    get_transformer_block_with_experimental_attention_variant_spec,
)
from megatron.core.ssm.gated_delta_net import GatedDeltaNet, GatedDeltaNetSubmodules
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreDotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron.bridge.models.transformer.biased_experts import BiasedExpertLinear
from megatron.bridge.models.transformer.core_attention import DotProductAttention
from megatron.bridge.models.transformer.layer_rope import LayerRopeSelfAttention
from megatron.bridge.models.transformer.multi_latent_attention import MultiLatentSelfAttention
from megatron.bridge.models.transformer.parallel_layer import ParallelTransformerLayer
from megatron.bridge.models.transformer.qk_norm import (
    NormAfterRope,
    ProjectionNorm,
    SelfAttentionWithNormsAfterRope,
    SeparateHeadNorm,
)
from megatron.bridge.models.transformer.residual import POST_NORM_KEYS, BiasDropoutAdd
from megatron.bridge.models.transformer.router import GeneralTopKRouter, needs_general_router
from megatron.bridge.models.transformer.sparse_attention import check_index_sharing, sparse_attention
from megatron.bridge.runtime import capabilities
from megatron.bridge.runtime.norm import TorchNorm
from megatron.bridge.runtime.replicated_linear import ReplicatedLinear

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig


# The norm of a gated delta net's output if its weight multiplies as it is, where other norms' are zero-centred.
_DELTA_NET_NORM = ModuleSpec(module=TorchNorm, params={"normalization": "RMSNorm", "zero_centered_gamma": False})

# Local MLA: a norm that is part of a linear layer with Transformer Engine is saved under the name that it has there.
_LOCAL_MLA_KEYS = {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def transformer_engine_layer_spec(config: "DecoderConfig", is_moe: bool | None = None) -> ModuleSpec:
    """One transformer layer of Transformer Engine modules.

    Args:
        is_moe: whether the layer has experts; default: if the model has any.
    """
    is_moe = config.num_moe_experts is not None if is_moe is None else is_moe
    spec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts if is_moe else None,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
    )
    _vary(spec, config, with_transformer_engine=True)
    return spec


def local_layer_spec(config: "DecoderConfig", is_moe: bool | None = None, is_linear: bool = False) -> ModuleSpec:
    """One transformer layer of megatron-core's own modules, with norms that accept sequence parallelism.

    Args:
        is_moe: whether the layer has experts; default: if the model has any.
        is_linear: whether it has linear attention (a gated delta net).
    """
    is_moe = config.num_moe_experts is not None if is_moe is None else is_moe
    spec = gpt_layer_specs.get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts if is_moe else None,
        moe_grouped_gemm=False,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
        normalization=config.normalization,
    )
    layer = spec.submodules
    attention = layer.self_attention.submodules
    if config.multi_latent_attention:
        layer.sharded_state_dict_keys_map = dict(_LOCAL_MLA_KEYS)
    for owner, names in (
        (layer, ("input_layernorm", "pre_mlp_layernorm")),
        (attention, ("q_layernorm", "k_layernorm", "kv_layernorm")),
    ):
        for name in names:
            if getattr(owner, name, None) not in (None, IdentityOp):
                setattr(owner, name, TorchNorm)
    if attention.core_attention is CoreDotProductAttention:
        attention.core_attention = DotProductAttention
    if is_moe:
        # In a checkpoint, the norm before experts keeps its name, as with Transformer Engine: there is no one linear
        # layer that it could be a part of.
        layer.sharded_state_dict_keys_map = {
            name: key for name, key in layer.sharded_state_dict_keys_map.items() if name != "pre_mlp_layernorm."
        }
    _vary(spec, config, with_transformer_engine=False)
    if is_linear:
        layer.self_attention = ModuleSpec(
            module=GatedDeltaNet,
            submodules=GatedDeltaNetSubmodules(
                in_proj=ColumnParallelLinear,
                out_norm=TorchNorm if config.linear_out_norm_zero_centered else _DELTA_NET_NORM,
                out_proj=RowParallelLinear,
            ),
        )
        layer.sharded_state_dict_keys_map = {
            **layer.sharded_state_dict_keys_map,
            "input_layernorm.": "self_attention.in_proj.layer_norm_",
        }
    return spec


def default_layer_spec(config: "DecoderConfig", vp_stage: int | None = None) -> Any:
    """The spec of this rank's decoder layers, by what the machine offers, with the modules that the config asks for."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    if config.experimental_attention_variant == "dsa":
        check_index_sharing(config, first, num_layers)
    if capabilities.has_transformer_engine():
        if config.experimental_attention_variant == "gated_delta_net":
            block = get_transformer_block_with_experimental_attention_variant_spec(config, vp_stage=vp_stage)
        else:
            usual = copy(config)  # megatron-core gives the spec of usual attention only, which _vary changes
            usual.experimental_attention_variant = None
            block = gpt_layer_specs.get_gpt_decoder_block_spec(usual, use_transformer_engine=True, vp_stage=vp_stage)
        for spec in {id(spec): spec for spec in block.layer_specs}.values():
            if spec.submodules.self_attention.module is GatedDeltaNet:
                if not config.linear_out_norm_zero_centered:
                    spec.submodules.self_attention.submodules.out_norm = _DELTA_NET_NORM
            else:
                _vary(spec, config, with_transformer_engine=True)
        if not config.norm_bias:
            block.layer_norm = TorchNorm
        return block
    kinds = list(zip(moe_layers(config), linear_layers(config), strict=True))[first : first + num_layers]
    specs = {kind: local_layer_spec(config, *kind) for kind in set(kinds)}
    return TransformerBlockSubmodules(layer_specs=[specs[kind] for kind in kinds], layer_norm=TorchNorm)


def mtp_block_spec(config: "DecoderConfig", layer_spec: Any, vp_stage: int | None = None) -> Any:
    """The spec of the multi-token prediction layers on this rank; `None` for none.

    They are like the last decoder layer, in models with gated delta nets like a layer with attention and experts.
    """
    if not config.mtp_num_layers:
        return None
    use_transformer_engine = capabilities.has_transformer_engine()
    if config.experimental_attention_variant == "gated_delta_net":
        layer_spec = (transformer_engine_layer_spec if use_transformer_engine else local_layer_spec)(config)
    block = gpt_layer_specs.get_gpt_mtp_block_spec(config, layer_spec, use_transformer_engine, vp_stage=vp_stage)
    if block is not None and not use_transformer_engine:
        for layer in block.layer_specs:
            for name in ("enorm", "hnorm", "layer_norm"):
                setattr(layer.submodules, name, TorchNorm)
    return block


def hybrid_mtp_block_spec() -> ModuleSpec:
    """The spec of a HybridModel's multi-token prediction layers, whose inner layers follow a pattern."""
    layer = MultiTokenPredictionLayerSubmodules(
        enorm=TorchNorm, hnorm=TorchNorm, eh_proj=ColumnParallelLinear, mtp_model_layer=None, layer_norm=TorchNorm
    )
    if capabilities.has_transformer_engine():
        layer.enorm = layer.hnorm = layer.layer_norm = transformer_engine.TENorm
        layer.eh_proj = transformer_engine.TEColumnParallelLinear
    return ModuleSpec(
        module=MultiTokenPredictionBlock,
        submodules=MultiTokenPredictionBlockSubmodules(
            layer_specs=[ModuleSpec(module=MultiTokenPredictionLayer, submodules=layer)]
        ),
    )


def moe_layers(config: "DecoderConfig") -> list[bool]:
    """For each layer of the model whether it has experts."""
    if config.num_moe_experts is None:
        return [False] * config.num_layers
    if isinstance(config.moe_layer_freq, int):
        return [layer % config.moe_layer_freq == 0 for layer in range(config.num_layers)]
    return [bool(kind) for kind in config.moe_layer_freq]


def linear_layers(config: "DecoderConfig") -> list[bool]:
    """For each layer of the model whether it has linear attention."""
    if config.experimental_attention_variant != "gated_delta_net":
        return [False] * config.num_layers
    return [bool(kind) for kind in get_linear_attention_pattern(config)]


def _vary(spec: ModuleSpec, config: "DecoderConfig", with_transformer_engine: bool) -> None:
    """Puts the modules that the config's fields ask for into a layer's spec."""
    layer = spec.submodules
    norm: Any = TorchNorm
    if with_transformer_engine:
        if not (config.use_pre_norms and config.norm_bias) or config.parallel_attention_and_mlp:
            separate_norms(layer, config)
        if config.norm_bias:
            norm = transformer_engine.TENorm
    if not config.use_pre_norms:
        layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp
    if config.use_post_norms or config.residual_multiplier != 1.0:
        add = ModuleSpec(module=BiasDropoutAdd, params={"config": config, "norm": norm})
        layer.self_attn_bda = layer.mlp_bda = add
        layer.sharded_state_dict_keys_map = {**layer.sharded_state_dict_keys_map, **POST_NORM_KEYS}
    if config.parallel_attention_and_mlp:
        spec.module = ParallelTransformerLayer
        layer.pre_mlp_layernorm = IdentityOp
    _vary_attention(layer.self_attention, config)
    if config.experimental_attention_variant == "dsa":
        _make_attention_sparse(layer, with_transformer_engine)
    _vary_experts(layer.mlp.keywords["submodules"], config, with_transformer_engine)
    _set_biases(spec, config)
    config.modify_layer_spec(spec)


def _vary_attention(spec: ModuleSpec, config: "DecoderConfig") -> None:
    attention = spec.submodules
    if config.multi_latent_attention:
        spec.module = MultiLatentSelfAttention
    if config.attn_logit_softcapping is not None:
        attention.core_attention = DotProductAttention
    if config.window_rope_parameters is not None or config.window_attention is not None:
        spec.module = LayerRopeSelfAttention
    if config.qk_layernorm and config.qk_layernorm_scope in ("projection", "separate_heads"):
        norm = ProjectionNorm if config.qk_layernorm_scope == "projection" else SeparateHeadNorm
        attention.q_layernorm = partial(norm, num_heads=config.num_attention_heads)
        attention.k_layernorm = partial(norm, num_heads=config.num_query_groups)
    if config.qk_layernorm and config.qk_layernorm_scope == "head_after_rope":
        spec.module = SelfAttentionWithNormsAfterRope
        attention.q_layernorm = attention.k_layernorm = NormAfterRope


def _make_attention_sparse(layer: Any, with_transformer_engine: bool) -> None:
    """Sparse attention; its indexer reads the normalised latent of queries, so that norm stands on its own."""
    attention = layer.self_attention.submodules
    if with_transformer_engine:
        attention.core_attention = sparse_attention(transformer_engine.TELinear, transformer_engine.TENorm)
        attention.q_layernorm = attention.kv_layernorm = transformer_engine.TENorm
        attention.linear_q_up_proj = attention.linear_kv_up_proj = transformer_engine.TEColumnParallelLinear
    else:
        attention.core_attention = sparse_attention(ReplicatedLinear, TorchNorm)
    # In checkpoints these norms are on their own too, as with megatron-core's own spec.
    keys = getattr(layer, "sharded_state_dict_keys_map", None) or {}
    layer.sharded_state_dict_keys_map = {name: key for name, key in keys.items() if "self_attention." not in name}


def _vary_experts(mlp: Any, config: "DecoderConfig", with_transformer_engine: bool) -> None:
    if not hasattr(mlp, "experts"):
        return
    if needs_general_router(config):
        mlp.router = GeneralTopKRouter
    if config.add_bias_linear and not with_transformer_engine:
        mlp.experts.keywords["submodules"].linear_fc2 = BiasedExpertLinear


def separate_norms(layer: Any, config: "DecoderConfig") -> None:
    """Takes the norms out of Transformer Engine's fused linear layers, under the same names in checkpoints."""
    norm = transformer_engine.TENorm if config.norm_bias else TorchNorm
    layer.input_layernorm = layer.pre_mlp_layernorm = norm
    layer.self_attention.submodules.linear_qkv = transformer_engine.TEColumnParallelLinear
    mlp = layer.mlp.keywords["submodules"]
    if hasattr(mlp, "linear_fc1"):
        mlp.linear_fc1 = transformer_engine.TEColumnParallelLinear
    layer.sharded_state_dict_keys_map = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }


def _set_biases(spec: ModuleSpec, config: "DecoderConfig") -> None:
    """Biases of single linear layers: megatron-core has one switch for all of them (`add_bias_linear`)."""
    layer = spec.submodules
    attention = layer.self_attention.submodules
    if config.attention_output_bias is not None:
        attention.linear_proj = partial(_build_linear, attention.linear_proj, config.attention_output_bias)
    if config.mlp_bias is not None:
        mlp = layer.mlp.keywords["submodules"]
        if not hasattr(mlp, "linear_fc1"):
            return  # experts have their own switch
        mlp.linear_fc1 = partial(_build_linear, mlp.linear_fc1, config.mlp_bias)
        mlp.linear_fc2 = partial(_build_linear, mlp.linear_fc2, config.mlp_bias)


def _build_linear(linear: Any, use_bias: bool, *args: Any, bias: bool, **kwargs: Any) -> Any:
    del bias  # the config's one switch for all layers
    return linear(*args, bias=use_bias, **kwargs)
