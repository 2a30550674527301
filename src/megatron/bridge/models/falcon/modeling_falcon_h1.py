"""Falcon-H1's layers: attention and a Mamba-2 mixer side by side, with multipliers almost everywhere."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.typed_torch import apply_module

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer import layer_specs
from megatron.bridge.models.transformer.mamba_mixer import MambaMixer, mixer_linears
from megatron.bridge.models.transformer.self_attention import SelfAttention
from megatron.bridge.runtime import capabilities

_OPEN_GATE = 1.2784645427610738  # silu of it is 1


@dataclass
class FalconH1Provider(GPTModelProvider):
    """A provider whose layers add the outputs of attention and of a Mamba-2 mixer.

    Attributes:
        attention_in_multiplier, attention_out_multiplier: factors of attention's input and output.
        ssm_in_multiplier, ssm_out_multiplier: factors of the mixer's input and output.
        ssm_multipliers: factors of the parts z, x, B, C and dt of the mixer's projection.
        mlp_multipliers: factors of the MLP's gate and of its output.
        mamba_rms_norm: whether the mixer has a norm besides its gate.
        mamba_norm_before_gate: whether the norm comes first.
        mamba_chunk_size, mamba_dt_min: as in `HybridProvider`.
    """

    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    ssm_multipliers: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    mlp_multipliers: tuple[float, ...] = (1.0, 1.0)
    mamba_rms_norm: bool = False
    mamba_norm_before_gate: bool = True
    mamba_chunk_size: int = 128
    mamba_dt_min: float = 0.0

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        layer, attention = layer_specs.layer_submodules(spec), layer_specs.attention_spec(spec)
        if capabilities.has_transformer_engine():
            layer_specs.separate_norms(spec, self)  # one norm in front of attention and mixer
        attention.module = FalconH1Attention
        attention.params["mixer"] = ModuleSpec(
            module=FalconH1Mixer,
            params={"chunk_size": self.mamba_chunk_size, "dt_min": self.mamba_dt_min, "rmsnorm": self.mamba_rms_norm},
            submodules=mixer_linears(norm_in_projection=False),
        )
        layer.mlp = partial(FalconH1MLP.as_mlp_submodule, **layer_specs.mlp_arguments(layer))


class FalconH1Attention(SelfAttention):
    """Attention plus a mixer that reads the same.

    Args:
        mixer: the spec of the mixer.
    """

    config: FalconH1Provider

    def __init__(self, *args: Any, mixer: ModuleSpec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = {"layer_number": self.layer_number, "pg_collection": self.pg_collection}
        self.mixer = build_module(mixer, self.config, d_model=self.config.hidden_size, **options)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Like the base class, without biases."""
        config = self.config
        attended, _ = super().forward(hidden_states * config.attention_in_multiplier, *args, **kwargs)
        options = {name: kwargs.get(name) for name in ("inference_context", "packed_seq_params")}
        mixed, _ = self.mixer(hidden_states, **options)
        return attended * config.attention_out_multiplier + mixed * config.ssm_out_multiplier, None


class FalconH1Mixer(MambaMixer):
    """A mixer whose projection has a factor for each part, and whose norm may come before the gate."""

    config: FalconH1Provider

    def _ssm_training(self, zxBCdt: torch.Tensor, packed_seq_params: PackedSeqParams | None = None) -> torch.Tensor:
        """Convolution, scan, gate and norm of the projection, `[S, B, ...]`."""
        config, cp = self.config, self.cp
        inner, states = cp.d_inner_local_tpcp, cp.ngroups_local_tpcp * self.d_state
        parts = zxBCdt.split([inner, inner, states, states, cp.nheads_local_tpcp], dim=-1)
        z, *others = (
            part * (config.ssm_in_multiplier * factor)
            for part, factor in zip(parts, config.ssm_multipliers, strict=True)
        )
        if not (self.rmsnorm and config.mamba_norm_before_gate):
            return super()._ssm_training(torch.cat([z, *others], dim=-1), packed_seq_params)
        # The fused kernel gates what it gives to the norm. This gate, silu(z) = 1, does not change it.
        opened = torch.cat([torch.full_like(z, _OPEN_GATE), *others], dim=-1)
        return super()._ssm_training(opened, packed_seq_params) * F.silu(cp.post_conv_ssm(z, packed_seq_params))


class FalconH1MLP(MLP):
    """A gated MLP with a factor of the gate and one of the output."""

    config: FalconH1Provider

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Like the base class, without biases."""
        gate_factor, output_factor = self.config.mlp_multipliers
        gate, up = apply_module(self.linear_fc1)(hidden_states)[0].chunk(2, dim=-1)
        output, _ = apply_module(self.linear_fc2)(F.silu(gate * gate_factor) * up)
        return output * output_factor, None
