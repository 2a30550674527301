"""Gated delta nets in plain torch: what megatron-core takes from flash-linear-attention, whose kernels need CUDA.

B sequences, S positions, C channels, W width of the convolution, H heads, K size of a key, V size of a value.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F


def l2norm(x: torch.Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> torch.Tensor:
    """`x` `[..., D]`, divided by its Euclidean norm over the last dimension; computed in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).sum(-1, keepdim=True) + eps)).to(output_dtype or x.dtype)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """A convolution of each channel with a filter of its own, over the present position and the W - 1 before it.

    Args:
        x: `[B, S, C]`.
        weight: `[C, W]`.
        bias: `[C]`.
        activation: "silu" or "swish" (the same), or `None`.
        cu_seqlens: where packed sequences begin and end; B is then 1.

    Returns:
        `[B, S, C]`, and no state.
    """
    if cu_seqlens is not None:
        parts = [causal_conv1d(part, weight, bias, activation)[0] for part in _unpacked(x, cu_seqlens)]
        return torch.cat(parts, 1), None
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    out = F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    return F.silu(out) if activation in ("silu", "swish") else out, None


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """megatron-core's own torch version of the rule (arXiv 2412.06464), for packed sequences too.

    Args:
        q, k: `[B, S, H, K]`.
        v: `[B, S, H, V]`.
        g, beta: `[B, S, H]`.
        cu_seqlens: where packed sequences begin and end; B is then 1.
    """
    from megatron.core.ssm.gated_delta_net.common import torch_chunk_gated_delta_rule

    if cu_seqlens is None:
        return torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, **options)
    parts = zip(*(_unpacked(tensor, cu_seqlens) for tensor in (q, k, v, g, beta)), strict=True)
    outputs = [torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, **options)[0] for q, k, v, g, beta in parts]
    return torch.cat(outputs, 1), None


def _unpacked(packed: torch.Tensor, cu_seqlens: torch.Tensor) -> list[torch.Tensor]:
    ends = cu_seqlens.tolist()
    return [packed[:, start:stop] for start, stop in itertools.pairwise(ends)]
