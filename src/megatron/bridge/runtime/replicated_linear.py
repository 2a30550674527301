"""A linear layer that every tensor-parallel rank holds whole, in plain torch."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


class ReplicatedLinear(torch.nn.Module):
    """A linear layer without bias that every tensor-parallel rank holds whole.

    megatron-core has one with Transformer Engine only.

    Args:
        input_size, output_size: the weight is `[output_size, input_size]`.
        kwargs: of Transformer Engine's layer, without meaning here.
    """

    def __init__(
        self, input_size: int, output_size: int, *, config: "TransformerConfig", init_method: Any, **kwargs: Any
    ) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        weight = torch.empty(output_size, input_size, dtype=config.params_dtype, device=device)
        self.weight = torch.nn.Parameter(weight)
        # Each rank sees a part of the sequence: gradients are summed over ranks.
        self.weight.sequence_parallel = config.sequence_parallel
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`[..., input_size]` to `[..., output_size]`, and no bias to add."""
        return F.linear(x, self.weight), None
