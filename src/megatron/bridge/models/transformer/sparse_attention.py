"""DeepSeek Sparse Attention (DSA, arXiv 2512.02556): multi-latent attention to keys that an indexer chooses."""

from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
    source_dsa_compute_layer,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

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


def check_index_sharing(config: DecoderConfig, vp_stage: int | None) -> None:
    """Raises `ParallelLayoutError` if a layer of this pipeline stage uses the indices of a layer of another stage."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    for layer in range(first, first + num_layers):
        source = source_dsa_compute_layer(layer + 1, config.dsa_indexer_skip_topk_offset, config.dsa_indexer_topk_freq)
        if source - 1 < first:
            raise ParallelLayoutError(
                f"pipeline stage of layers {first} to {first + num_layers - 1}: layer {layer} attends to the keys that "
                f"layer {source - 1} chooses, which is on another stage; choose pipeline sizes with which each stage "
                "begins at a layer that has an indexer of its own"
            )
