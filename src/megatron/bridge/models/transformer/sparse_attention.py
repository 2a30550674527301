"""DeepSeek Sparse Attention (DSA, arXiv 2512.02556): multi-latent attention to the keys that an indexer chooses."""

from typing import Any

from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
    source_dsa_compute_layer,
)
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import ParallelLayoutError


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
