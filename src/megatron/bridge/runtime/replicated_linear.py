"""A linear layer that every tensor-parallel rank holds whole, in plain torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


class ReplicatedLinear(torch.nn.Module):
    """A linear layer without bias that every tensor-parallel rank holds whole.

    megatron-core has such a layer with Transformer Engine only.

    Args:
        input_size, output_size: the weight is `[output_size, input_size]`.
        init_method: fills the weight in place.
        kwargs: further arguments of Transformer Engine's layer, which have no meaning here.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: "TransformerConfig",
        init_method: Callable[[torch.Tensor], object],
        **kwargs: object,
    ) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        weight = torch.empty(output_size, input_size, dtype=config.params_dtype, device=device)
        self.weight = torch.nn.Parameter(weight)
        # Each rank sees part of the sequence, so megatron-core has to sum the gradients over ranks.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (not an attribute of Parameter)
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Turns `[..., input_size]` into `[..., output_size]`, and leaves no bias to add."""
        return F.linear(x, self.weight), None
