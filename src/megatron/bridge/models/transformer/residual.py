"""The addition of a sublayer's output to the residual stream, scaled (Granite)."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add


def scaled_bias_dropout_add(multiplier: float) -> Callable[[bool, bool], Any]:
    """megatron-core's `get_bias_dropout_add` with the output (and its bias) multiplied by `multiplier`."""

    def get_scaled(training: bool, fused: bool) -> Any:
        add = get_bias_dropout_add(training, fused)

        def scaled(x_with_bias: Any, residual: torch.Tensor, dropout: float) -> torch.Tensor:
            x, bias = x_with_bias
            return add((x * multiplier, None if bias is None else bias * multiplier), residual, dropout)

        return scaled

    return get_scaled
