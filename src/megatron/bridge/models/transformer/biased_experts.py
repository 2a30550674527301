"""The second linear layer of experts with biases, for local (non Transformer Engine) specs."""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import RowParallelLinear


class BiasedExpertLinear(RowParallelLinear):
    """megatron-core's RowParallelLinear, for an expert whose bias its MLP adds in place.

    megatron-core 0.19 adds an expert's bias to the output before the output is summed over expert-tensor-parallel
    ranks, so that the sum would have it once per rank; and it adds it in place to what autograd takes for a view.
    """

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, Any]:
        output, bias = super().forward(input_)
        num_ranks = self.tp_group.size()
        if bias is not None and num_ranks > 1:
            # A part of the bias, with the gradient of the whole: every rank holds a copy.
            bias = bias - (bias * (1 - 1 / num_ranks)).detach()
        return output.clone(), bias
