"""Mamba-2's kernels in plain torch, for megatron-core's mixer on machines without CUDA.

They have the signatures of the packages mamba-ssm and causal-conv1d, as far as `megatron.core.ssm.mamba_mixer` uses
them. The scan follows the chunked algorithm of "Transformers are SSMs" (arXiv 2405.21060, section 6): quadratic within
a chunk, a recurrence of states between chunks. Everything is differentiable.

B batch, S sequence, A heads, P head size, G groups, N state size, D channels, W width of the convolution.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict

NO_LIMIT = (0.0, float("inf"))


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """A convolution of each channel with a filter of its own, over the present position and the W - 1 before it.

    Args:
        x: `[B, D, S]`.
        weight: `[D, W]`.
        bias: `[D]`.
        activation: "silu" or "swish" (the same), or `None`.
    """
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None].to(x.dtype), bias, groups=weight.shape[0])
    return F.silu(y) if activation in ("silu", "swish") else y


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    memory: torch.Tensor | None = None,
) -> torch.Tensor:
    """`y_s = C_s h_s + D x_s` with `h_s = exp(dt_s A) h_{s-1} + dt_s B_s x_s`, gated by `silu(z)`; computed in fp32.

    Args:
        x, z: `[B, S, A, P]`.
        dt: `[B, S, A]`; `dt_bias` is added to it, softplus applied, and the result kept within `dt_limit`.
        A: `[A]`, negative.
        B, C: `[B, S, G, N]`; a group serves `A // G` heads.
        chunk_size: how many positions are computed at once; changes nothing but rounding.
        D: `[A]` or `[A, P]`.
        memory: the state before, `[B, A, P, N]` in fp32; the state after is written into it. Default: zeros.
    """
    num_heads, length = x.shape[2], x.shape[1]
    steps = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    steps = (F.softplus(steps) if dt_softplus else steps).clamp(*dt_limit)
    B, C = (part.float().repeat_interleave(num_heads // part.shape[2], dim=2) for part in (B, C))
    inputs, decays = x.float() * steps[..., None], steps * A.float()
    chunk_size = min(chunk_size, length)
    padding = -length % chunk_size
    inputs, B, C, decays = (
        F.pad(part, (0, 0) * (part.dim() - 2) + (0, padding)).unflatten(1, (-1, chunk_size))
        for part in (inputs, B, C, decays)
    )
    total = decays.cumsum(2)  # log of the decay since the chunk's start: [B, chunk, position, A]
    between = total[:, :, :, None] - total[:, :, None]
    future = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=x.device).triu(1)[..., None]
    scores = torch.einsum("bcihn,bcjhn->bcijh", C, B) * between.masked_fill(future, float("-inf")).exp()
    y = torch.einsum("bcijh,bcjhp->bcihp", scores, inputs)
    added = torch.einsum("bcjhn,bcjh,bcjhp->bchpn", B, (total[:, :, -1:] - total).exp(), inputs)
    state, states = torch.zeros_like(added[:, 0]) if memory is None else memory, []
    for chunk in range(added.shape[1]):
        states.append(state)
        state = state * total[:, chunk, -1].exp()[..., None, None] + added[:, chunk]
    y = y + torch.einsum("bcihn,bcih,bchpn->bcihp", C, total.exp(), torch.stack(states, 1))
    if memory is not None:
        memory.copy_(state)
    y = y.flatten(1, 2)[:, :length]
    if D is not None:
        y = y + x.float() * (D.float()[:, None] if D.dim() == 1 else D.float())
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(x.dtype)


def split_conv1d_scan(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    *,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str = "silu",
    headdim: int,
    ngroups: int = 1,
    norm_before_gate: bool = False,
    seq_idx: None = None,
) -> torch.Tensor:
    """Convolves a projection `[B, S, z x B C dt]` and scans it with a gate; gives `[B, S, A * P]`."""
    assert seq_idx is None and not norm_before_gate, "packed sequences and another order are not offered on the CPU"
    num_heads = A.shape[0]
    size = num_heads * headdim
    states = (zxbcdt.shape[-1] - 2 * size - num_heads) // 2
    z, convolved, dt = zxbcdt.split([size, size + 2 * states, num_heads], dim=-1)
    convolved = causal_conv1d(convolved.mT, conv1d_weight, conv1d_bias, activation).mT
    x, B, C = convolved.split([size, states, states], dim=-1)
    x, z = (part.unflatten(-1, (num_heads, headdim)) for part in (x, z))
    B, C = (part.unflatten(-1, (ngroups, -1)) for part in (B, C))
    y = chunk_scan(x, dt, A, B, C, chunk_size, D=D, z=z, dt_bias=dt_bias, dt_softplus=True, dt_limit=dt_limit)
    return y.flatten(2)


class GatedRMSNorm(torch.nn.Module):
    """RMSNorm over groups of channels, of `x * silu(z)` if there is a gate; statistics in fp32.

    Args:
        hidden_size: the number of channels on this rank, D. Parameter: `weight` `[D]`.
        eps: added to the mean square.
        group_size: how many channels are normalised together; default: all.
    """

    tp_group: "torch.distributed.ProcessGroup"  # set by the mixer

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert not norm_before_gate, "megatron-core's mixer gates first"
        self.eps, self.group_size = eps, group_size or hidden_size
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """Normalises `x` `[..., D]`."""
        gated = x.float() if z is None else x.float() * F.silu(z.float())
        groups = gated.view(*gated.shape[:-1], -1, self.group_size)
        groups = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + self.eps)
        return (groups.flatten(-2) * self.weight.float()).to(x.dtype)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Iterable[tuple[int, int, int]] = (),
        metadata: dict[str, Any] | None = None,
    ) -> "ShardedStateDict":
        """The weight, cut over the tensor-parallel ranks."""
        from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint

        state: ShardedStateDict = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )
        return state


_MIXER = "megatron.core.ssm.mamba_mixer"
REPLACEMENTS: tuple[tuple[str, object], ...] = (
    (f"{_MIXER}:HAVE_MAMBA_SSM", True),
    (f"{_MIXER}:ExtendedRMSNorm", GatedRMSNorm),
    (f"{_MIXER}:mamba_split_conv1d_scan_combined", split_conv1d_scan),
)
