"""megatron-core's Mamba-2 mixer with the norm and the step sizes that HF configs ask for."""

from typing import Any

import torch
from megatron.core.extensions import transformer_engine
from megatron.core.ssm import mamba_mixer as core
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import UnsupportedConfigError


def mamba_mixer(config: Any, norm_in_projection: bool) -> ModuleSpec:
    """The spec of a mixer.

    Args:
        norm_in_projection: whether to use Transformer Engine's linear layers, the first with the norm in front.
    """
    in_proj, out_proj = ColumnParallelLinear, RowParallelLinear
    if norm_in_projection:
        in_proj = transformer_engine.TELayerNormColumnParallelLinear
        out_proj = transformer_engine.TERowParallelLinear
    return ModuleSpec(
        module=MambaMixer,
        params={"chunk_size": config.mamba_chunk_size},
        submodules=core.MambaMixerSubmodules(in_proj=in_proj, out_proj=out_proj),
    )


class MambaMixer(core.MambaMixer):
    """Reads the norm's epsilon and the smallest step size from the provider (`HybridProvider`)."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.norm.eps = config.layernorm_epsilon  # megatron-core's own is always 1e-5

    def _ssm_training(self, zxBCdt: torch.Tensor, packed_seq_params: Any = None) -> torch.Tensor:
        """Convolution, scan and norm of the projection, `[S, B, ...]`."""
        if not self.config.mamba_dt_min:
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
            dt_limit=(self.config.mamba_dt_min, float("inf")),
            activation=self.activation,
            headdim=self.headdim,
            ngroups=self.cp.ngroups_local_tpcp,
            norm_before_gate=self.norm_before_gate,
        )
        return self.norm(self.cp.post_conv_ssm(y.transpose(0, 1).contiguous(), None))
