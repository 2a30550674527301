"""DeepSeek Sparse Attention (DSA, arXiv 2512.02556): multi-latent attention to keys that an indexer chooses."""

from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
    source_dsa_compute_layer,
)
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.models.transformer.decoder_config import DecoderConfig


def sparse_attention(linear: type, norm: type) -> ModuleSpec:
    """The spec of megatron-core's sparse core attention, with an indexer made of these modules.

    Args:
        linear: the class of the indexer's projections, which tensor-parallel ranks hold whole.
        norm: the class of the norm of its keys.
    """
    indexer = DSAIndexerSubmodules(linear_wq_b=linear, linear_wk=linear, k_norm=norm, linear_weights_proj=linear)
    return ModuleSpec(
        module=DSAttention, submodules=DSAttentionSubmodules(indexer=ModuleSpec(module=DSAIndexer, submodules=indexer))
    )


def check_index_sharing(config: DecoderConfig, first: int, num_layers: int) -> None:
    """Raises `ParallelLayoutError` if a layer of a pipeline stage uses the indices of a layer of another stage.

    Args:
        first: the stage's first layer, counted from 0.
        num_layers: the number of its layers.
    """
    for layer in range(first, first + num_layers):
        source = source_dsa_compute_layer(layer + 1, config.dsa_indexer_skip_topk_offset, config.dsa_indexer_topk_freq)
        if source - 1 < first:
            raise ParallelLayoutError(
                f"pipeline stage of layers {first} to {first + num_layers - 1}: layer {layer} attends to the keys that "
                f"layer {source - 1} chooses, which is on another stage; choose pipeline sizes with which each stage "
                "begins at a layer that has an indexer of its own"
            )
