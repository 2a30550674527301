"""megatron-core's parallel linear layers, which on one tensor-parallel rank compute nothing but the product."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import layers as core
from megatron.core.utils import get_pg_size

# The output, and the bias if the caller adds it.
type _Output = tuple[torch.Tensor, torch.Tensor | None]


def _is_plain(layer: "ColumnParallelLinear | RowParallelLinear") -> bool:
    """Whether a layer neither communicates nor manages gradients and memory by itself."""
    config = layer.config
    return (
        get_pg_size(layer.tp_group) == 1
        and layer.gtp_remat_size == 1
        and not (layer.gradient_accumulation_fusion or config.defer_embedding_wgrad_compute or config.cpu_offloading)
    )


def _product(layer: "ColumnParallelLinear | RowParallelLinear", x: torch.Tensor, weight: torch.Tensor) -> _Output:
    if layer.skip_bias_add:
        return F.linear(x, weight), layer.bias
    return F.linear(x, weight, layer.bias), None


class ColumnParallelLinear(core.ColumnParallelLinear):
    """A linear layer whose output features are split over the ranks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_plain = _is_plain(self)

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> _Output:
        """As in the base class, for `input_` `[S, B, H]`."""
        weight = self.weight if weight is None else weight
        if self.is_plain:
            return _product(self, input_, weight)
        output: _Output = super().forward(input_, weight, runtime_gather_output)
        return output


class RowParallelLinear(core.RowParallelLinear):
    """A linear layer whose input features are split over the ranks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_plain = _is_plain(self)

    def forward(self, input_: torch.Tensor) -> Any:
        """As in the base class, for `input_` `[S, B, H]`."""
        if self.is_plain:
            return _product(self, input_, self.weight)
        return super().forward(input_)
