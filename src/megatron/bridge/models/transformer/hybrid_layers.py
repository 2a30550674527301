"""A decoder's layers as those of a HybridStack: each whole, or as two, attention and then its MLP.

Both kinds are built from the layer specs of a GPTModel. What a layer is told is its number among the decoder's layers,
as HF counts them, so every field by layer (windows, experts, auxiliary losses) means the same in both model classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules
from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols
from megatron.core.ssm.gated_delta_net import GatedDeltaNet
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import MoETransformerLayer, get_transformer_layer_offset
from megatron.core.transformer.transformer_layer import TransformerLayer as CoreTransformerLayer

from megatron.bridge.models.transformer import layer_specs
from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.hybrid_stack import HybridStack
from megatron.bridge.models.transformer.transformer_layer import TransformerLayer

_ATTENTION = {
    "attention_layer": Symbols.ATTENTION,
    "mla_layer": Symbols.MLA,
    "dsa_layer": Symbols.DS_ATTENTION,
    "gdn_layer": Symbols.GDN,
}
_USUAL = (CoreTransformerLayer, TransformerLayer)
_MLPS = ("mlp_layer", "moe_layer")


def are_split(config: DecoderConfig, specs: Sequence[ModuleSpec]) -> bool:
    """Whether each layer is two of the stack. Layers of a class of their own, such as parallel ones, stay whole."""
    return config.hybrid_layers == "split" and all(spec.module in _USUAL for spec in specs)


def stack_spec(config: DecoderConfig, block: TransformerBlockSubmodules, prediction: ModuleSpec | None) -> ModuleSpec:
    """The spec of the whole stack, whose layers are those of `block`.

    Args:
        block: the specs of all layers of the model, on whatever pipeline stages they are.
        prediction: of the multi-token prediction layers' inner layers.
    """
    is_split = are_split(config, block.layer_specs or ())
    layer = {"specs": block.layer_specs, "prediction": prediction, "is_split": is_split}
    layers = {kind: ModuleSpec(module=DecoderLayer, params={**layer, "kind": kind}) for kind in (*_ATTENTION, *_MLPS)}
    return ModuleSpec(
        module=HybridStack,
        params={"norm": block.layer_norm},
        submodules=HybridStackSubmodules(mtp_block_spec=layer_specs.hybrid_mtp_block_spec(), **layers),
    )


def layer_pattern(config: DecoderConfig, specs: Sequence[ModuleSpec], prediction: ModuleSpec | None) -> str:
    """The stack's pattern: a letter for each of its layers, "|" between pipeline stages, "/" before prediction layers.

    Three layers of attention and MLP on two stages are "*-*-|*-" if they are split, and "**|*" if not.
    """
    is_split = are_split(config, specs)

    def letters(spec: ModuleSpec) -> str:
        attention = _ATTENTION[_attention_kind(config, spec)]
        return attention + (Symbols.MOE if _has_experts(spec) else Symbols.MLP) if is_split else attention

    num_stages = config.virtual_pipeline_model_parallel_size
    stages: Sequence[int | None] = [None] if num_stages is None else range(num_stages)
    starts = sorted(
        get_transformer_layer_offset(config, vp_stage=stage, pp_rank=rank)
        for stage in stages
        for rank in range(config.pipeline_model_parallel_size)
    )
    ends = [*starts[1:], len(specs)]
    decoder = "|".join("".join(map(letters, specs[start:end])) for start, end in zip(starts, ends, strict=True))
    return "/".join([decoder, *([letters(prediction)] * (config.mtp_num_layers or 0) if prediction else [])])


class DecoderLayer:
    """What a HybridStack builds for a letter: the layer of the decoder, or the half of it, that stands there."""

    def __new__(  # type: ignore[misc]  # what it makes is a layer
        cls,
        *,
        specs: Sequence[ModuleSpec],
        prediction: ModuleSpec | None,
        is_split: bool,
        kind: str,
        config: DecoderConfig,
        layer_number: int,
        is_mtp_layer: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> CoreTransformerLayer:
        """Builds the layer.

        Args:
            specs: of the decoder's layers.
            prediction: of the inner layers of multi-token prediction layers.
            is_split: whether a layer has two letters.
            kind: the part of the stack's spec, which says which half it is.
            layer_number: the stack's, from 1; of a prediction layer, within it.
            name: of the module, "mtp.layers.2.mtp_model_layer.layers.0". The stack says only to some kinds of layers
                that they are in a prediction layer.
        """
        if is_mtp_layer or (name or "").startswith("mtp."):
            assert prediction is not None
            spec, number, kwargs["is_mtp_layer"] = prediction, int((name or "mtp.layers.1").split(".")[2]), True
        else:
            number = (layer_number - 1) // (2 if is_split else 1) + 1
            spec = specs[number - 1]
            if config.heterogeneous_block_specs:  # a TransformerBlock asks for it, a HybridStack does not
                config = config.get_config_for_layer(number)  # type: ignore[attr-defined]  # those that ask for it
        if is_split:
            spec = _half(spec, is_mlp=kind in _MLPS)
            if "pp_layer_offset" in kwargs:
                kwargs["pp_layer_offset"] //= 2
        if spec.module is MLPLayer:  # which takes fewer arguments
            kwargs = {key: value for key, value in kwargs.items() if key not in ("is_mtp_layer", "pp_layer_offset")}
        layer: CoreTransformerLayer = build_module(spec, config=config, layer_number=number, name=name, **kwargs)
        return layer


def _half(spec: ModuleSpec, is_mlp: bool) -> ModuleSpec:
    """The spec of a layer's attention, or of its MLP, as a layer."""
    layer = layer_specs.layer_submodules(spec)
    if is_mlp:
        module = MoETransformerLayer if _has_experts(spec) else MLPLayer
        half = replace(layer, input_layernorm=IdentityOp, self_attention=IdentityOp, self_attn_bda=IdentityFuncOp)
        return ModuleSpec(module=module, params=spec.params, submodules=half)
    half = replace(layer, pre_mlp_layernorm=IdentityOp, mlp=IdentityOp, mlp_bda=IdentityFuncOp)
    return ModuleSpec(module=CoreTransformerLayer, params=spec.params, submodules=half)


def _has_experts(spec: ModuleSpec) -> bool:
    return isinstance(layer_specs.mlp_submodules(layer_specs.layer_submodules(spec)), MoESubmodules)


def _attention_kind(config: DecoderConfig, spec: ModuleSpec) -> str:
    module = layer_specs.attention_spec(spec).module
    if isinstance(module, type) and issubclass(module, GatedDeltaNet):
        return "gdn_layer"
    if config.experimental_attention_variant == "dsa":
        return "dsa_layer"
    return "mla_layer" if config.multi_latent_attention else "attention_layer"
