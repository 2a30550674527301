"""Opens a Megatron checkpoint, a Hugging Face folder or a hub id as a Megatron model that is ready to run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.inference.generate import eos_token_ids
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.training.checkpoint_origin import checkpoint_iteration
from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER
from megatron.bridge.transport.parallel_sizes import ONE_RANK, ParallelLayout

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import MegatronModule
    from transformers import PreTrainedTokenizerBase

    from megatron.bridge.models.model_provider import Provider


class OpenedModel(NamedTuple):
    """This rank's chunks of a Megatron model, with the tokenizer and the end tokens that generation needs."""

    model: "list[MegatronModule]"
    tokenizer: "PreTrainedTokenizerBase"
    eos_token_ids: Sequence[int]


def open_model(
    name: str | Path,
    layout: ParallelLayout = ONE_RANK,
    dtype: "torch.dtype | None" = None,
    *,
    tokenizer_from: str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> OpenedModel:
    """Builds a model in Megatron-Core on this run's ranks, with its weights (collective).

    Args:
        name: a Megatron checkpoint (its folder, or one of its iterations), an HF folder or a hub id.
        dtype: of weights and computation; default: as stored.
        tokenizer_from: take the tokenizer from this HF folder or hub id; default: from the model.
        trust_remote_code: allow the HF folder's own Python code to run.
        revision: branch, tag or commit of the hub id.

    Raises:
        CheckpointError: a folder that holds neither kind of model, or no tokenizer.
        ParallelLayoutError: the layout does not fit the model or the number of ranks.
        BridgeError: all else that `AutoBridge` raises.
    """
    from megatron.bridge import runtime

    runtime.enter()
    from megatron.bridge.models import live_checkpoint
    from megatron.bridge.models.transformer.decoder_config import set_dtype
    from megatron.bridge.transport import process_groups

    iteration = checkpoint_iteration(name)
    if iteration is not None:
        hf_pretrained = PreTrainedCausalLM.from_pretrained(
            tokenizer_from or iteration / TOKENIZER_FOLDER, trust_remote_code=trust_remote_code
        )
        tokenizer = hf_pretrained.tokenizer  # an error here comes before the work
        provider, _ = live_checkpoint.load_model_config(iteration)
        if dtype is not None:
            set_dtype(provider, dtype)
        process_groups.initialize(tp=layout.tp, pp=layout.pp, ep=layout.ep)
        model = live_checkpoint.load_megatron_model(iteration, _fields(layout), provider)
        return OpenedModel(model, tokenizer, eos_token_ids(hf_pretrained))
    bridge = AutoBridge.from_hf_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    hf_pretrained = bridge.hf_pretrained
    if tokenizer_from is not None:
        hf_pretrained = PreTrainedCausalLM.from_pretrained(tokenizer_from, trust_remote_code=trust_remote_code)
    tokenizer = hf_pretrained.tokenizer
    process_groups.initialize(tp=layout.tp, pp=layout.pp, ep=layout.ep)
    model = provider_for(bridge, layout, dtype).provide_distributed_model(wrap_with_ddp=False)
    return OpenedModel(model, tokenizer, eos_token_ids(hf_pretrained))


def provider_for(bridge: AutoBridge, layout: ParallelLayout, dtype: "torch.dtype | None" = None) -> "Provider":
    """A finalised provider that builds an `AutoBridge`'s model in a layout, from the HF weights.

    Where tensor parallelism does not divide the query groups, groups of zeros are added, so that any size will do.

    Args:
        dtype: of weights and computation; default: the model's own.
    """
    provider = bridge.to_megatron_provider()
    provider.apply_overrides_and_finalize(dtype, _fields(layout))
    return provider


def _fields(layout: ParallelLayout) -> dict[str, Any]:
    return {**layout.provider_fields, "pad_query_groups": layout.tp > 1}
