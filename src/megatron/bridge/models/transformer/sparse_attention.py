"""DeepSeek Sparse Attention (DSA, arXiv 2512.02556): multi-latent attention to the keys that an indexer chooses."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
    source_dsa_compute_layer,
)
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import ParallelLayoutError

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
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`[..., input_size]` to `[..., output_size]`, and no bias to add."""
        return F.linear(x, self.weight), None


def sparse_attention(linear: Any, norm: Any) -> ModuleSpec:
    """megatron-core's sparse core attention, with the modules of its indexer.

    Args:
        linear: of the indexer's projections, replicated over tensor-parallel ranks.
        norm: of its keys.
    """
    indexer = DSAIndexerSubmodules(linear_wq_b=linear, linear_wk=linear, k_norm=norm, linear_weights_proj=linear)
    return ModuleSpec(
        module=DSAttention,
        submodules=DSAttentionSubmodules(indexer=ModuleSpec(module=DSAIndexer, submodules=indexer)),
    )


def check_index_sharing(config: Any, first: int, num_layers: int) -> None:
    """Raises `ParallelLayoutError` if a layer of a pipeline stage takes the indices of a layer of another stage.

    Args:
        first, num_layers: the stage's layers, counted from 0.
    """
    for layer in range(first, first + num_layers):
        source = source_dsa_compute_layer(layer + 1, config.dsa_indexer_skip_topk_offset, config.dsa_indexer_topk_freq)
        if source - 1 < first:
            raise ParallelLayoutError(
                f"pipeline stage of layers {first} to {first + num_layers - 1}: layer {layer} attends to the keys that "
                f"layer {source - 1} chooses, which is on another stage; choose pipeline sizes with which each stage "
                "begins at a layer that has an indexer of its own"
            )
