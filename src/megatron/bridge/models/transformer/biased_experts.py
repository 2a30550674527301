"""The second linear layer of experts with biases, for local (non Transformer Engine) specs."""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import RowParallelLinear


class BiasedExpertLinear(RowParallelLinear):
    """megatron-core's RowParallelLinear, with a bias that can be trained in an expert.

    megatron-core 0.19 adds an expert's bias to the output in place, which autograd refuses because it takes the output
    for a view. It also marks the bias for a sum of gradients over tensor-parallel ranks. For experts, these are ranks
    of the expert data-parallel group, over which the gradients are summed already.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        setattr(self.bias, "sequence_parallel", False)  # noqa: B010 (not an attribute of Parameter)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Like the base class."""
        output, bias = super().forward(input_)
        return output.clone(), bias
