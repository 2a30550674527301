"""Norms of query and key other than one norm that is applied to each head before the rotary embedding.

Letters in shapes: S positions, B sequences, A heads, D dimensions per head; each of T ranks holds A / T heads.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron.bridge.models.transformer.self_attention import SelfAttention
from megatron.bridge.runtime.norm import TorchNorm


class _ShardedNorm(torch.nn.Module):
    """A norm whose weight, `[A * D]`, is cut over tensor-parallel ranks together with the heads."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, num_heads: int) -> None:
        super().__init__()
        num_local_heads = num_heads // parallel_state.get_tensor_model_parallel_world_size()
        self.eps = eps
        self.num_dims = num_heads * hidden_size
        self.weight = torch.nn.Parameter(torch.ones(num_local_heads * hidden_size, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Iterable[tuple[int, int, int]] = (), metadata: object = None
    ) -> ShardedStateDict:
        """The weight, cut along its only axis."""
        state: ShardedStateDict = make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, {"weight": 0}, sharded_offsets
        )
        return state


class ProjectionNorm(_ShardedNorm):
    """RMSNorm over the heads of all ranks together, with one weight per dimension of each head (OLMo 2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `x` `[S, B, A / T, D]`."""
        flat = x.float().flatten(2)
        # Every rank's loss depends on every rank's squares: they are summed forward, and their gradients backward.
        squares = reduce_from_tensor_model_parallel_region(flat.pow(2).sum(-1, keepdim=True))
        squares = copy_to_tensor_model_parallel_region(squares)
        normalised = flat * torch.rsqrt(squares / self.num_dims + self.eps)
        return (self.weight * normalised).to(x.dtype).view_as(x)


class SeparateHeadNorm(_ShardedNorm):
    """LayerNorm over each head, without bias, where each head has weights of its own (StableLM)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `x` `[S, B, A / T, D]`."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight.view(x.shape[-2:])


class NormAfterRope(TorchNorm):
    """A norm over each head that attention applies after the rotary embedding (HunYuan).

    SelfAttention calls its norms before that, when they must do nothing; `SelfAttentionWithNormsAfterRope` calls
    `normalise`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x` as it is."""
        return x

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `x` `[..., D]`."""
        return super().forward(x)


class SelfAttentionWithNormsAfterRope(SelfAttention):
    """Normalises query and key just before the core attention. Its norms must be `NormAfterRope`."""

    q_layernorm: NormAfterRope
    k_layernorm: NormAfterRope

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.core_attention, torch.nn.Module)
        self.core_attention.register_forward_pre_hook(self._normalise)

    def _normalise(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        query, key, *others = args
        return self.q_layernorm.normalise(query), self.k_layernorm.normalise(key), *others
