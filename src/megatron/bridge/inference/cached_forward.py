"""Forward passes of a Megatron model with a KV cache: one sequence, fed piece by piece.

S is the number of tokens in one piece, H the hidden size, V the vocabulary's size without padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.utils import InferenceMode
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import MegatronModule, TransformerConfig

from megatron.bridge.errors import BridgeError, ParallelLayoutError
from megatron.bridge.models.model_building import config_of, unwrap_model
from megatron.bridge.models.transformer.rotary import ScaledRotaryEmbedding
from megatron.bridge.transport import pipeline

# Attributes of modules and their values while generating. A single new token cannot be split over the tensor-parallel
# ranks, so sequence parallelism is off (`sp_size` is a gated delta net's); the results are the same.
_SWITCHED_OFF = {"training": False, "sequence_parallel": False, "reduce_scatter_embeddings": False, "sp_size": 1}


class CachedForward:
    """One sequence's forward passes. Every rank of the model takes part, with the same tokens.

    The logits are those of a forward pass over the whole sequence. Where a rope scaling changes its frequencies with
    the length (longrope once, dynamic at each step past the original length), the whole sequence is computed again.
    transformers does that with `use_cache=False`; with its cache it mixes keys of different frequencies. Models with
    linear or sparse attention, or Mamba layers, whose state is not kept, compute the whole sequence for each token.

    The state of the model (training mode, sequence parallelism) changes only during a call.

    Args:
        model: a chunk or the list of one chunk, bare or wrapped (DDP, Float16Module).
        capacity: positions that the cache has room for.
        vocab_size: V; default: the provider's.

    Raises:
        ParallelLayoutError: virtual pipeline stages, or context parallelism.
        BridgeError: `vocab_size` is not given and the model's config does not have it.
    """

    def __init__(
        self, model: MegatronModule | Sequence[MegatronModule], capacity: int, vocab_size: int | None = None
    ) -> None:
        self.chunk = single_chunk(model)
        self.config = config_of(self.chunk)
        if self.config.context_parallel_size > 1:
            raise ParallelLayoutError(
                f"generation: context_parallel_size is {self.config.context_parallel_size}, but the KV cache of one "
                "sequence is not split over ranks; build the model with context_parallel_size=1"
            )
        self.vocab_size = vocab_size or vocab_size_of(self.config)
        self.group = cast("ProcessGroupCollection", self.chunk.pg_collection).pp
        self.device = next(self.chunk.parameters()).device
        self.context = StaticInferenceContext(max_batch_size=1, max_sequence_length=capacity)
        self._rotary = getattr(self.chunk, "rotary_pos_emb", None)
        self._token_ids: list[int] = []
        self._flags = _flags_to_switch_off(self.chunk)
        is_usual = self.config.experimental_attention_variant is None
        self._has_cache = is_usual and getattr(self.config, "has_kv_cache", True)

    def __call__(self, token_ids: Sequence[int]) -> torch.Tensor | None:
        """Feeds the next S tokens: any number first, then one at a time.

        Returns:
            On the last pipeline stage, the logits of what follows, `[V]` in fp32 on the CPU; elsewhere `None`.
        """
        num_cached = len(self._token_ids)
        assert not num_cached or len(token_ids) == 1, (
            "after the first call, megatron-core's cache takes one token at a time"
        )
        self._token_ids.extend(token_ids)
        if num_cached and (not self._has_cache or self._must_start_again(num_cached)):
            self.context.reset()
            token_ids = self._token_ids
        start = self.context.sequence_len_offset
        ids = torch.tensor([token_ids], device=self.device)
        positions = torch.arange(start, start + len(token_ids), device=self.device)[None]
        if start:
            self.context.enable_decode_mode()
        mode = InferenceMode.active() if self._has_cache else nullcontext()
        with torch.no_grad(), mode, _switched_off(self._flags):
            output = self._run_stage(ids, positions)
        self.context.increment_sequence_len_offset(len(token_ids))
        if output is None:
            return None
        return output[0, -1, : self.vocab_size].float().cpu()

    def _must_start_again(self, num_cached: int) -> bool:
        return isinstance(self._rotary, ScaledRotaryEmbedding) and self._rotary.changes_between(
            num_cached, len(self._token_ids)
        )

    def _run_stage(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """This rank's part of a pass: hidden states come in and go out, `[S, 1, H]`, or, at the end, logits."""
        if not pipeline.is_first(self.group):
            # Some models hand over more than hidden states.
            shape = (ids.shape[1], 1, getattr(self.chunk, "stage_input_size", self.config.hidden_size))
            dtype = self.config.pipeline_dtype
            cast(Any, self.chunk).set_input_tensor(
                pipeline.receive_from_previous(shape, dtype, self.device, self.group)
            )
        context = self.context if self._has_cache else None
        output: torch.Tensor = self.chunk(
            ids, positions, attention_mask=None, inference_context=context, runtime_gather_output=True
        )
        if pipeline.is_last(self.group):
            return output
        pipeline.send_to_next(output.to(self.config.pipeline_dtype), self.group)
        return None


def single_chunk(model: MegatronModule | Sequence[MegatronModule]) -> MegatronModule:
    """The bare chunk of a model that has one chunk per rank.

    Raises:
        ParallelLayoutError: it has several.
    """
    chunks = unwrap_model(model)
    if len(chunks) != 1:
        raise ParallelLayoutError(
            f"generation: the model has {len(chunks)} chunks per rank (virtual pipeline stages), expected 1; build it "
            "with virtual_pipeline_model_parallel_size=None"
        )
    return chunks[0]


def vocab_size_of(config: TransformerConfig) -> int:
    """The number of real tokens, without the rows that pad the embedding.

    Raises:
        BridgeError: the config does not have it.
    """
    vocab_size = getattr(config, "vocab_size", None)
    if not vocab_size:
        raise BridgeError(
            f"generation: {type(config).__name__} has no vocab_size, so padding cannot be told from tokens; "
            "pass vocab_size"
        )
    return int(vocab_size)


def _flags_to_switch_off(chunk: torch.nn.Module) -> list[tuple[object, str, object]]:
    """Owner, name and present value of the attributes that have another value while generating."""
    modules = list(chunk.modules())
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    return [
        (owner, name, getattr(owner, name))
        for owner in (*modules, *configs.values())
        for name, value in _SWITCHED_OFF.items()
        if getattr(owner, name, value) != value
    ]


@contextmanager
def _switched_off(flags: list[tuple[object, str, object]]) -> Iterator[None]:
    for owner, name, _ in flags:
        setattr(owner, name, _SWITCHED_OFF[name])
    try:
        yield
    finally:
        for owner, name, value in flags:
            setattr(owner, name, value)
