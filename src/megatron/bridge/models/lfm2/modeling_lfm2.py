"""LFM2's layers: some have attention, the others a gated short convolution in its place."""

from dataclasses import dataclass, replace

from megatron.core.models.gpt.experimental_attention_variant_module_specs import get_linear_attention_pattern
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.gpt_provider import GPTModelProvider, default_layer_spec
from megatron.bridge.models.transformer import layer_specs
from megatron.bridge.models.transformer.short_conv import ShortConv, ShortConvConfig, ShortConvSubmodules


def short_conv_layer_spec(config: "Lfm2Provider", vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The usual specs of this rank's decoder layers, with short convolutions where `linear_attention_freq` says so."""
    block = default_layer_spec(config, vp_stage=vp_stage)
    has_conv = get_linear_attention_pattern(config)
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    block.layer_specs = [
        _with_short_conv(spec) if has_conv[layer] else spec
        for layer, spec in enumerate(block.layer_specs or (), start=first)
    ]
    return block


@dataclass
class Lfm2Provider(ShortConvConfig, GPTModelProvider):
    """A provider with short convolutions in place of attention, in the layers of `linear_attention_freq`.

    Attributes:
        mlp_size_rule: the HF fields that `ffn_hidden_size` was computed from; `None` for a size that stands as it is.
    """

    mlp_size_rule: dict[str, object] | None = None
    transformer_layer_spec: layer_specs.DecoderSpec | layer_specs.DecoderSpecBuilder = short_conv_layer_spec

    def finalize(self) -> None:
        super().finalize()
        if self.context_parallel_size > 1:
            raise UnsupportedConfigError(
                "Lfm2Provider: context_parallel_size must be 1, because a convolution reads positions of other ranks"
            )


def _with_short_conv(spec: ModuleSpec) -> ModuleSpec:
    """A layer's spec with a short convolution in place of attention, made of the linear layers of that attention."""
    layer, attention = layer_specs.layer_submodules(spec), layer_specs.attention_submodules(spec)
    assert isinstance(attention, SelfAttentionSubmodules)
    linear_layers = ShortConvSubmodules(in_proj=attention.linear_qkv, out_proj=attention.linear_proj)
    keys = {
        name: key.replace("self_attention.linear_qkv.", "self_attention.in_proj.")
        for name, key in layer.sharded_state_dict_keys_map.items()
    }
    changed = replace(
        layer, self_attention=ModuleSpec(module=ShortConv, submodules=linear_layers), sharded_state_dict_keys_map=keys
    )
    return replace(spec, submodules=changed)
