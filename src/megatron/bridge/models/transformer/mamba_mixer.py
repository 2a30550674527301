"""megatron-core's Mamba-2 mixer with the norm and the step sizes that HF configs ask for."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.extensions import transformer_engine
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.ssm import mamba_mixer as core
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.transformer.generation_context import GenerationContext, with_earlier_inputs
from megatron.bridge.models.transformer.parallel_linear import ColumnParallelLinear, RowParallelLinear
from megatron.bridge.runtime import capabilities
from megatron.bridge.runtime.mamba import chunk_scan


def mixer_linears(*, norm_in_projection: bool) -> core.MambaMixerSubmodules:
    """The linear layers of a mixer, made of what the machine offers.

    Args:
        norm_in_projection: whether Transformer Engine's first layer includes the norm; megatron-core's own never does.
    """
    if not capabilities.has_transformer_engine():
        return core.MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear)
    with_norm, without = transformer_engine.TELayerNormColumnParallelLinear, transformer_engine.TEColumnParallelLinear
    in_proj = with_norm if norm_in_projection else without
    return core.MambaMixerSubmodules(in_proj=in_proj, out_proj=transformer_engine.TERowParallelLinear)


class MambaMixer(core.MambaMixer):
    """A mixer whose norm has the config's epsilon, and whose step sizes have a minimum.

    Args:
        dt_min: the smallest step size.
    """

    def __init__(self, config: TransformerConfig, *args: Any, dt_min: float = 0.0, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.dt_min = dt_min
        self._context: GenerationContext | None = None
        if self.rmsnorm:
            self.norm.eps = config.layernorm_epsilon  # megatron-core's own is always 1e-5

    def forward(self, hidden_states: torch.Tensor, inference_context: Any = None, **kwargs: Any) -> Any:
        """As in the base class; a `GenerationContext` keeps the inputs of the convolution and the state of the scan."""
        if not isinstance(inference_context, GenerationContext):
            return super().forward(hidden_states, inference_context, **kwargs)
        self._context = inference_context
        try:
            return self.out_proj(self._ssm_training(self.in_proj(hidden_states)[0]))
        finally:
            self._context = None

    def _ssm_training(self, zxBCdt: torch.Tensor, packed_seq_params: PackedSeqParams | None = None) -> torch.Tensor:
        """Convolution, scan and norm of the projection, `[S, B, ...]`."""
        if self._context is not None:
            return self._scan_next(zxBCdt.transpose(0, 1), self._context)
        if not self.dt_min:
            return super()._ssm_training(zxBCdt, packed_seq_params)
        if packed_seq_params is not None:
            raise UnsupportedConfigError(
                "MambaMixer: packed sequences are not offered with a smallest step size; expected mamba_dt_min=0.0"
            )
        y = core.mamba_split_conv1d_scan_combined(
            zxBCdt.transpose(0, 1).contiguous(),
            self.cp.get_conv1d_weight().squeeze(1),
            self.cp.get_conv1d_bias(),
            self.cp.get_dt_bias().float(),
            -torch.exp(self.cp.get_A_log().float()),
            D=self.cp.get_D(),
            chunk_size=self.chunk_size,
            dt_limit=(self.dt_min, float("inf")),
            activation=self.activation,
            headdim=self.headdim,
            ngroups=self.cp.ngroups_local_tpcp,
            norm_before_gate=self.norm_before_gate,
        )
        y = self.cp.post_conv_ssm(y.transpose(0, 1).contiguous(), None)
        return self.norm(y) if self.rmsnorm else y

    def _scan_next(self, projected: torch.Tensor, context: GenerationContext) -> torch.Tensor:
        """The same of the positions after those of earlier passes, `[B, S, ...]`, in plain torch on any device."""
        inner, states, num_heads = self.d_inner_local_tp, self.ngroups_local_tp * self.d_state, self.nheads_local_tp
        z, convolved, dt = projected.split([inner, inner + 2 * states, num_heads], dim=-1)
        weight, bias = self.cp.get_conv1d_weight(), self.cp.get_conv1d_bias()
        convolved = with_earlier_inputs(context, self.layer_number, convolved, weight.shape[-1] - 1)
        convolved = F.silu(F.conv1d(convolved.mT, weight, bias, groups=weight.shape[0])).mT
        x, B, C = convolved.split([inner, states, states], dim=-1)
        x, z = (part.unflatten(-1, (num_heads, self.headdim)) for part in (x, z))
        B, C = (part.unflatten(-1, (self.ngroups_local_tp, self.d_state)) for part in (B, C))
        sizes = (x.shape[0], num_heads, self.headdim, self.d_state)
        y = chunk_scan(
            x,
            dt,
            -torch.exp(self.cp.get_A_log().float()),
            B,
            C,
            self.chunk_size,
            D=self.cp.get_D().view(num_heads, -1) if self.D_has_hdim else self.cp.get_D(),
            z=z,
            dt_bias=self.cp.get_dt_bias(),
            dt_softplus=True,
            dt_limit=(self.dt_min, float("inf")),
            memory=context.state(self.layer_number, "memory", x.new_empty(sizes, dtype=torch.float32)),
        )
        y = y.flatten(2).transpose(0, 1).contiguous()
        return self.norm(y) if self.rmsnorm else y
