"""megatron-core's Mamba-2 mixer with the norm and the step sizes that HF configs ask for."""

from typing import Any

import torch
from megatron.core.extensions import transformer_engine
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.ssm import mamba_mixer as core
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.transformer.parallel_linear import ColumnParallelLinear, RowParallelLinear
from megatron.bridge.runtime import capabilities


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
        if self.rmsnorm:
            self.norm.eps = config.layernorm_epsilon  # megatron-core's own is always 1e-5

    def _ssm_training(self, zxBCdt: torch.Tensor, packed_seq_params: PackedSeqParams | None = None) -> torch.Tensor:
        """Convolution, scan and norm of the projection, `[S, B, ...]`."""
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
