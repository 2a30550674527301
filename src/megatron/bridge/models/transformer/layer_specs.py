"""Layer specs: Transformer Engine where it can run, megatron-core's own modules elsewhere. The choice is made here."""

import inspect
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from megatron.core.extensions import transformer_engine
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_linear_attention_pattern,
    get_transformer_block_with_experimental_attention_variant_spec,
)
from megatron.core.ssm.gated_delta_net import GatedDeltaNetSubmodules
from megatron.core.tensor_parallel import layers as core_linear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreDotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import LayerNormBuilder
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules, get_transformer_layer_offset

from megatron.bridge.models.transformer import qk_norm
from megatron.bridge.models.transformer.biased_experts import BiasedExpertLinear
from megatron.bridge.models.transformer.core_attention import DotProductAttention
from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.delta_net import GatedDeltaNet
from megatron.bridge.models.transformer.layer_rope import LayerRopeSelfAttention
from megatron.bridge.models.transformer.mlp import MLP
from megatron.bridge.models.transformer.multi_latent_attention import MultiLatentSelfAttention
from megatron.bridge.models.transformer.parallel_layer import ParallelTransformerLayer
from megatron.bridge.models.transformer.parallel_linear import ColumnParallelLinear, RowParallelLinear
from megatron.bridge.models.transformer.residual import POST_NORM_KEYS, BiasDropoutAdd
from megatron.bridge.models.transformer.router import GeneralTopKRouter, needs_general_router
from megatron.bridge.models.transformer.self_attention import SelfAttention
from megatron.bridge.models.transformer.sparse_attention import sparse_attention
from megatron.bridge.models.transformer.transformer_layer import TransformerLayer
from megatron.bridge.runtime import capabilities
from megatron.bridge.runtime.norm import TorchNorm
from megatron.bridge.runtime.replicated_linear import ReplicatedLinear

# The layers of a decoder: one spec for all, or one for each.
DecoderSpec = ModuleSpec | TransformerBlockSubmodules
DecoderSpecBuilder = Callable[..., DecoderSpec]


def built_spec(spec: DecoderSpec | DecoderSpecBuilder, config: DecoderConfig, vp_stage: int | None) -> DecoderSpec:
    """The spec that `spec` is, or makes for a config (and, if it takes it, a `vp_stage`)."""
    if isinstance(spec, DecoderSpec):  # megatron-core's specs are callable too
        return spec
    return spec(config, vp_stage=vp_stage) if "vp_stage" in inspect.signature(spec).parameters else spec(config)


# The norm of a gated delta net's output, if its weight multiplies as it is while those of other norms are zero-centred.
_DELTA_NET_NORM = ModuleSpec(module=TorchNorm, params={"normalization": "RMSNorm", "zero_centered_gamma": False})

# Local MLA: norms that Transformer Engine makes part of a linear layer are saved under the names that they have there.
_LOCAL_MLA_KEYS = {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


# The parts of a layer's spec, all of which megatron-core declares as objects.


def layer_submodules(spec: ModuleSpec) -> TransformerLayerSubmodules:
    """The modules of a layer: `layer_submodules(spec).mlp = IdentityOp` takes its MLP away."""
    assert isinstance(spec.submodules, TransformerLayerSubmodules)
    return spec.submodules


def attention_spec(spec: ModuleSpec) -> ModuleSpec:
    """The spec of a layer's attention."""
    attention = layer_submodules(spec).self_attention
    assert isinstance(attention, ModuleSpec)
    return attention


def attention_submodules(spec: ModuleSpec) -> SelfAttentionSubmodules | MLASelfAttentionSubmodules:
    """The modules of a layer's attention."""
    parts = attention_spec(spec).submodules
    assert isinstance(parts, SelfAttentionSubmodules | MLASelfAttentionSubmodules)
    return parts


def mlp_arguments(layer: TransformerLayerSubmodules) -> dict[str, Any]:
    """The arguments that a layer's MLP, or mixture of experts, is built with; "submodules" are its modules."""
    assert isinstance(layer.mlp, partial)
    return layer.mlp.keywords


def mlp_submodules(layer: TransformerLayerSubmodules) -> MLPSubmodules | MoESubmodules:
    """The modules of a layer's MLP or mixture of experts."""
    parts = mlp_arguments(layer)["submodules"]
    assert isinstance(parts, MLPSubmodules | MoESubmodules)
    return parts


def post_norm_builder(layer: TransformerLayerSubmodules) -> LayerNormBuilder:
    """What builds the norms that `use_post_norms` puts after a layer's MLP."""
    assert isinstance(layer.mlp_bda, ModuleSpec)
    builder: LayerNormBuilder = layer.mlp_bda.params["norm"]
    return builder


def transformer_engine_layer_spec(config: DecoderConfig, is_moe: bool | None = None) -> ModuleSpec:
    """One transformer layer made of Transformer Engine's modules.

    Args:
        is_moe: whether the layer has experts; default: whether the model has any.
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


def local_layer_spec(config: DecoderConfig, is_moe: bool | None = None, is_linear: bool = False) -> ModuleSpec:
    """One transformer layer made of megatron-core's own modules, with norms that accept sequence parallelism.

    Args:
        is_moe: whether the layer has experts; default: whether the model has any.
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
    layer, attention = layer_submodules(spec), attention_submodules(spec)
    if config.multi_latent_attention:
        layer.sharded_state_dict_keys_map = dict(_LOCAL_MLA_KEYS)
    for owner in (layer, attention):
        for name in ("input_layernorm", "pre_mlp_layernorm", "q_layernorm", "k_layernorm", "kv_layernorm"):
            if getattr(owner, name, None) not in (None, IdentityOp):
                setattr(owner, name, TorchNorm)
    if attention.core_attention is CoreDotProductAttention:
        attention.core_attention = DotProductAttention
    _lighten_linears(attention, mlp_submodules(layer))
    spec.module = TransformerLayer
    if not is_moe:
        layer.mlp = partial(MLP.as_mlp_submodule, **mlp_arguments(layer))
    if is_moe:
        # In a checkpoint, the norm before experts keeps its name, as with Transformer Engine, because there is no
        # single linear layer that it could be part of.
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


def _lighten_linears(*owners: Any) -> None:
    """Puts this project's linear layers in the place of megatron-core's."""
    ours = {core_linear.ColumnParallelLinear: ColumnParallelLinear, core_linear.RowParallelLinear: RowParallelLinear}
    for owner in owners:
        for name, part in list(vars(owner).items()):
            if isinstance(part, partial) and "submodules" in part.keywords:  # experts
                _lighten_linears(part.keywords["submodules"])
            elif isinstance(part, type) and part in ours and "down_proj" not in name:  # MLA insists on megatron-core's
                setattr(owner, name, ours[part])


def default_layer_spec(config: DecoderConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The specs of this rank's decoder layers: what the machine offers, with the modules that the config asks for."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    if capabilities.has_transformer_engine():
        if config.experimental_attention_variant == "gated_delta_net":
            block = get_transformer_block_with_experimental_attention_variant_spec(config, vp_stage=vp_stage)
        else:
            usual = copy(config)  # megatron-core has specs of usual attention only, which _vary changes
            usual.experimental_attention_variant = None
            block = gpt_layer_specs.get_gpt_decoder_block_spec(usual, use_transformer_engine=True, vp_stage=vp_stage)
        for spec in {id(spec): spec for spec in block.layer_specs or ()}.values():
            delta_net = attention_spec(spec).submodules
            if not isinstance(delta_net, GatedDeltaNetSubmodules):
                _vary(spec, config, with_transformer_engine=True)
                continue
            attention_spec(spec).module = GatedDeltaNet
            if not config.linear_out_norm_zero_centered:
                delta_net.out_norm = _DELTA_NET_NORM
        if not config.norm_bias:
            block.layer_norm = TorchNorm
        return block
    kinds = list(zip(moe_layers(config), linear_layers(config), strict=True))[first : first + num_layers]
    specs = {kind: local_layer_spec(config, *kind) for kind in set(kinds)}
    return TransformerBlockSubmodules(layer_specs=[specs[kind] for kind in kinds], layer_norm=TorchNorm)


def mtp_block_spec(
    config: DecoderConfig, layer_spec: DecoderSpec, vp_stage: int | None = None
) -> MultiTokenPredictionBlockSubmodules | None:
    """The specs of the multi-token prediction layers on this rank; `None` if there are none."""
    if not config.mtp_num_layers:
        return None
    use_transformer_engine = capabilities.has_transformer_engine()
    # A single spec would have to be of megatron-core's own class of layers, one in a block need not.
    layer_spec = TransformerBlockSubmodules(layer_specs=[prediction_layer_spec(config, layer_spec)])
    block: MultiTokenPredictionBlockSubmodules | None
    block = gpt_layer_specs.get_gpt_mtp_block_spec(config, layer_spec, use_transformer_engine, vp_stage=vp_stage)
    if block is not None and not use_transformer_engine:
        for layer in block.layer_specs or ():
            for name in ("enorm", "hnorm", "layer_norm"):
                setattr(layer.submodules, name, TorchNorm)
    return block


def prediction_layer_spec(config: DecoderConfig, layer_spec: DecoderSpec) -> ModuleSpec:
    """The spec of the layer in a multi-token prediction layer.

    It is like the last decoder layer or, in models with gated delta nets, like a layer with attention and experts.
    """
    usual_layer_spec = transformer_engine_layer_spec if capabilities.has_transformer_engine() else local_layer_spec
    if config.experimental_attention_variant == "gated_delta_net":
        return usual_layer_spec(config)
    if isinstance(layer_spec, ModuleSpec):
        return layer_spec
    if layer_spec.layer_specs:
        return layer_spec.layer_specs[-1]
    return usual_layer_spec(config, is_moe=moe_layers(config)[-1])  # no decoder layer is on this rank


def hybrid_mtp_block_spec() -> ModuleSpec:
    """The spec of a HybridModel's multi-token prediction layers, whose inner layers follow a pattern."""
    layer = MultiTokenPredictionLayerSubmodules(
        enorm=TorchNorm,
        hnorm=TorchNorm,
        eh_proj=ColumnParallelLinear,
        mtp_model_layer=None,  # type: ignore[arg-type]  # a pattern takes its place
        layer_norm=TorchNorm,
    )
    if capabilities.has_transformer_engine():
        layer.enorm = layer.hnorm = layer.layer_norm = _transformer_engine_norm()
        layer.eh_proj = transformer_engine.TEColumnParallelLinear
    return ModuleSpec(
        module=MultiTokenPredictionBlock,
        submodules=MultiTokenPredictionBlockSubmodules(
            layer_specs=[ModuleSpec(module=MultiTokenPredictionLayer, submodules=layer)]
        ),
    )


def moe_layers(config: DecoderConfig) -> list[bool]:
    """For each layer of the model, whether it has experts."""
    if config.num_moe_experts is None:
        return [False] * config.num_layers
    if isinstance(config.moe_layer_freq, int):
        return [layer % config.moe_layer_freq == 0 for layer in range(config.num_layers)]
    return [bool(kind) for kind in config.moe_layer_freq]


def linear_layers(config: DecoderConfig) -> list[bool]:
    """For each layer of the model, whether it has linear attention."""
    if config.experimental_attention_variant != "gated_delta_net":
        return [False] * config.num_layers
    return [bool(kind) for kind in get_linear_attention_pattern(config)]


def _vary(spec: ModuleSpec, config: DecoderConfig, with_transformer_engine: bool) -> None:
    """Puts the modules that the config's fields ask for into a layer's spec."""
    layer = layer_submodules(spec)
    norm: LayerNormBuilder = TorchNorm
    if with_transformer_engine:
        if not (config.use_pre_norms and config.norm_bias) or config.parallel_attention_and_mlp:
            separate_norms(spec, config)
        if config.norm_bias:
            norm = _transformer_engine_norm()
    if not config.use_pre_norms:
        layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp
    if config.use_post_norms or config.residual_multiplier != 1.0:
        add = ModuleSpec(module=BiasDropoutAdd, params={"config": config, "norm": norm})
        layer.self_attn_bda = layer.mlp_bda = add
        layer.sharded_state_dict_keys_map = {**layer.sharded_state_dict_keys_map, **POST_NORM_KEYS}
    if config.parallel_attention_and_mlp:
        spec.module = ParallelTransformerLayer
        layer.pre_mlp_layernorm = IdentityOp
    _vary_attention(spec, config)
    if config.experimental_attention_variant == "dsa":
        _make_attention_sparse(spec, with_transformer_engine)
    _vary_experts(mlp_submodules(layer), config, with_transformer_engine)
    _set_biases(spec, config)
    config.modify_layer_spec(spec)


def _vary_attention(layer_spec: ModuleSpec, config: DecoderConfig) -> None:
    spec, attention = attention_spec(layer_spec), attention_submodules(layer_spec)
    spec.module = MultiLatentSelfAttention if config.multi_latent_attention else SelfAttention
    if config.attn_logit_softcapping is not None:
        attention.core_attention = DotProductAttention
    if config.window_rope_parameters is not None or config.window_attention is not None:
        spec.module = LayerRopeSelfAttention
    if config.qk_layernorm and config.qk_layernorm_scope != "head":
        assert isinstance(attention, SelfAttentionSubmodules)
        if config.qk_layernorm_scope == "head_after_rope":
            spec.module = qk_norm.SelfAttentionWithNormsAfterRope
            attention.q_layernorm = attention.k_layernorm = qk_norm.NormAfterRope
        else:
            norm = qk_norm.ProjectionNorm if config.qk_layernorm_scope == "projection" else qk_norm.SeparateHeadNorm
            attention.q_layernorm = partial(norm, num_heads=config.num_attention_heads)
            attention.k_layernorm = partial(norm, num_heads=config.num_query_groups or config.num_attention_heads)


def _make_attention_sparse(spec: ModuleSpec, with_transformer_engine: bool) -> None:
    """Makes attention sparse. Its indexer reads the normalised latent of queries, so that norm stands on its own."""
    layer, attention = layer_submodules(spec), attention_submodules(spec)
    assert isinstance(attention, MLASelfAttentionSubmodules)
    if with_transformer_engine:
        attention.core_attention = sparse_attention(transformer_engine.TELinear, transformer_engine.TENorm)
        attention.q_layernorm = attention.kv_layernorm = _transformer_engine_norm()
        attention.linear_q_up_proj = attention.linear_kv_up_proj = transformer_engine.TEColumnParallelLinear
    else:
        attention.core_attention = sparse_attention(ReplicatedLinear, TorchNorm)
    # In checkpoints, too, these norms stand on their own, as with megatron-core's own spec.
    keys = layer.sharded_state_dict_keys_map
    layer.sharded_state_dict_keys_map = {name: key for name, key in keys.items() if "self_attention." not in name}


def _vary_experts(mlp: MLPSubmodules | MoESubmodules, config: DecoderConfig, with_transformer_engine: bool) -> None:
    if isinstance(mlp, MLPSubmodules):
        return
    if needs_general_router(config):
        mlp.router = GeneralTopKRouter
    if config.add_bias_linear and not with_transformer_engine:
        assert isinstance(mlp.experts, partial)
        mlp.experts.keywords["submodules"].linear_fc2 = BiasedExpertLinear


def separate_norms(spec: ModuleSpec, config: DecoderConfig) -> None:
    """Takes a layer's norms out of Transformer Engine's fused linear layers. Checkpoints keep their names for them."""
    norm = _transformer_engine_norm() if config.norm_bias else TorchNorm
    layer, attention, mlp = layer_submodules(spec), attention_submodules(spec), mlp_submodules(layer_submodules(spec))
    assert isinstance(attention, SelfAttentionSubmodules)
    layer.input_layernorm = layer.pre_mlp_layernorm = norm
    attention.linear_qkv = transformer_engine.TEColumnParallelLinear
    if isinstance(mlp, MLPSubmodules):
        mlp.linear_fc1 = transformer_engine.TEColumnParallelLinear
    layer.sharded_state_dict_keys_map = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }


def _set_biases(spec: ModuleSpec, config: DecoderConfig) -> None:
    """Sets the biases of single linear layers: megatron-core has one switch for all of them (`add_bias_linear`)."""
    attention, mlp = attention_submodules(spec), mlp_submodules(layer_submodules(spec))
    if config.attention_output_bias is not None:
        attention.linear_proj = partial(_build_linear, attention.linear_proj, config.attention_output_bias)
    if config.mlp_bias is not None and isinstance(mlp, MLPSubmodules):  # experts have a switch of their own
        mlp.linear_fc1 = partial(_build_linear, mlp.linear_fc1, config.mlp_bias)
        mlp.linear_fc2 = partial(_build_linear, mlp.linear_fc2, config.mlp_bias)


def _build_linear[LinearT](
    linear: Callable[..., LinearT], use_bias: bool, *args: Any, bias: bool, **kwargs: Any
) -> LinearT:
    del bias  # the config's one switch for all layers
    return linear(*args, bias=use_bias, **kwargs)


def _transformer_engine_norm() -> LayerNormBuilder:
    return transformer_engine.TENorm  # type: ignore[return-value]  # declared to build itself, but it builds a norm
