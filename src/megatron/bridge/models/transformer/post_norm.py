"""Norms behind attention and MLP, in front of the residual addition (Gemma 2, OLMo 2, GLM 4, ...)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def with_post_norm(linear: type, norm: Callable[..., torch.nn.Module]) -> type:
    """A subclass of a row-parallel linear layer whose output, bias included, goes through a norm of its own.

    The norm is the layer's child `post_layernorm`, so that checkpoints hold it under
    `self_attention.linear_proj.post_layernorm.weight` and `mlp.linear_fc2.post_layernorm.weight`. With sequence
    parallelism it sees the rank's part of the sequence, as the norms in front do.

    Args:
        linear: of megatron-core or Transformer Engine; returns its output `[S, B, H]` and the bias to add.
        norm: called with `config`, `hidden_size` and `eps`.
    """

    class RowParallelLinearWithPostNorm(linear):  # type: ignore[misc]
        def __init__(self, *args: Any, config: Any, **kwargs: Any) -> None:
            super().__init__(*args, config=config, **kwargs)
            self.post_layernorm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            output, bias = super().forward(x)
            return self.post_layernorm(output if bias is None else output + bias), None

    return RowParallelLinearWithPostNorm
