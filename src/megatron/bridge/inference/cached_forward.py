"""Forward passes of a Megatron model with a KV cache: sequences of any length, fed piece by piece.

B is the number of sequences in a pass, S of tokens of each, H the hidden size, V the vocabulary's size without padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, cast

import torch
from megatron.core.inference.utils import InferenceMode
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import MegatronModule, TransformerConfig

from megatron.bridge.errors import BridgeError, ParallelLayoutError
from megatron.bridge.models.model_building import config_of, unwrap_model
from megatron.bridge.models.transformer.generation_context import GenerationContext
from megatron.bridge.models.transformer.rotary import ScaledRotaryEmbedding
from megatron.bridge.runtime import capabilities
from megatron.bridge.transport import pipeline

# Attributes of modules and their values while generating. A single new token cannot be split over the tensor-parallel
# ranks, so sequence parallelism is off (`sp_size` is a gated delta net's); the results are the same.
_SWITCHED_OFF = {"training": False, "sequence_parallel": False, "reduce_scatter_embeddings": False, "sp_size": 1}


class CachedForward:
    """The forward passes of sequences. Every rank of the model takes part, with the same tokens.

    The logits are those of a forward pass over each whole sequence. Where a rope scaling changes its frequencies with
    the length (longrope once, dynamic at each step past the original length), the whole sequence is computed again.
    transformers does that with `use_cache=False`; with its cache it mixes keys of different frequencies. Models with
    sparse attention, whose indexer keeps nothing, compute the whole sequence for each token.

    The state of the model (training mode, sequence parallelism) changes only during a call.

    Args:
        model: a chunk or the list of one chunk, bare or wrapped (DDP, Float16Module).
        capacity: tokens that each sequence has room for.
        num_sequences: how many there are. If `needs_equal_lengths(model)`, they must be equally long.
        vocab_size: V; default: the provider's.

    Raises:
        ParallelLayoutError: virtual pipeline stages, or context parallelism.
        BridgeError: `vocab_size` is not given and the model's config does not have it.
    """

    def __init__(
        self,
        model: MegatronModule | Sequence[MegatronModule],
        capacity: int,
        num_sequences: int = 1,
        vocab_size: int | None = None,
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
        self.context = GenerationContext(num_sequences, capacity)
        self._rotary = getattr(self.chunk, "rotary_pos_emb", None)
        self._sequences: list[list[int]] = [[] for _ in range(num_sequences)]  # by length, as the cache's rows
        self._rows = list(range(num_sequences))
        self._hidden: torch.Tensor | None = None
        self._flags = _flags_to_switch_off(self.chunk)
        self._has_cache = has_cache(self.config)

    def __call__(self, pieces: Sequence[Sequence[int]]) -> torch.Tensor | None:
        """Feeds the next tokens of each sequence: any number first, then one at a time.

        Returns:
            On the last pipeline stage, the logits of what follows, `[B, V]` in fp32 on the CPU; elsewhere `None`.
        """
        is_first = not self._sequences[0]
        assert is_first or all(len(piece) == 1 for piece in pieces), "after the first call, it is one token at a time"
        if is_first:
            self._rows = sorted(range(len(pieces)), key=lambda row: len(pieces[row]))
        for sequence, row in zip(self._sequences, self._rows, strict=True):
            sequence.extend(pieces[row])
        with torch.no_grad(), _switched_off(self._flags):
            if is_first or not self._has_cache or self._must_start_again():
                logits = self._first_passes()
            else:
                logits = self._next_pass()
        if logits is None:
            return None
        logits = logits[:, : self.vocab_size].float().cpu()
        return logits if len(self._rows) == 1 else logits[torch.tensor(self._rows).argsort()]

    def _must_start_again(self) -> bool:
        length = len(self._sequences[-1])
        return isinstance(self._rotary, ScaledRotaryEmbedding) and self._rotary.changes_between(length - 1, length)

    def _first_passes(self) -> torch.Tensor | None:
        """One pass for each length, in which a sequence stands so that it ends where the longest does."""
        longest = len(self._sequences[-1])
        starts = torch.tensor([longest - len(sequence) for sequence in self._sequences], device=self.device)
        if starts.any():
            self._hidden = torch.arange(self.context.max_sequence_length, device=self.device) < starts[:, None]
        row, logits = 0, []
        for length, group in groupby(self._sequences, key=len):
            column, sequences = longest - length, list(group)
            self.context.start_pass(row, column, column, slice(length))
            positions = torch.arange(length, device=self.device).expand(len(sequences), -1)
            logits.append(self._run_stage(torch.tensor(sequences, device=self.device), positions, None))
            row += len(sequences)
        return None if logits[0] is None else torch.cat(cast("list[torch.Tensor]", logits))

    def _next_pass(self) -> torch.Tensor | None:
        """The last token of each sequence."""
        column = len(self._sequences[-1]) - 1
        positions = torch.tensor([len(sequence) - 1 for sequence in self._sequences], device=self.device)
        hidden = None if self._hidden is None else self._hidden[:, None, None, : column + 1]
        self.context.start_pass(0, 0, column, slice(column, column + 1) if hidden is None else positions)
        ids = torch.tensor([sequence[-1:] for sequence in self._sequences], device=self.device)
        return self._run_stage(ids, positions[:, None], hidden)

    def _run_stage(
        self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        """This rank's part of a pass: hidden states come in and go out, `[S, B, H]`, or logits at the end, `[B, V]`."""
        if not pipeline.is_first(self.group):
            # Some models hand over more than hidden states.
            shape = (*ids.shape[::-1], getattr(self.chunk, "stage_input_size", self.config.hidden_size))
            dtype = self.config.pipeline_dtype
            cast(Any, self.chunk).set_input_tensor(
                pipeline.receive_from_previous(shape, dtype, self.device, self.group)
            )
        context = self.context if self._has_cache else None
        with InferenceMode.active() if self._has_cache else nullcontext():
            output: torch.Tensor = self.chunk(
                ids, positions, attention_mask=hidden, inference_context=context, runtime_gather_output=True
            )
        if pipeline.is_last(self.group):
            return output[:, -1]
        pipeline.send_to_next(output.to(self.config.pipeline_dtype), self.group)
        return None


def has_cache(config: TransformerConfig) -> bool:
    """Whether all layers keep what they need of earlier tokens: all do but megatron-core's sparse attention."""
    return config.experimental_attention_variant != "dsa"


def needs_equal_lengths(model: MegatronModule | Sequence[MegatronModule]) -> bool:
    """Whether sequences of one batch must be equally long.

    That is so if a layer asks for a token's position by where its key stands in the cache, if a rope's frequencies
    depend on the length, and if attention is Transformer Engine's, which is not given a mask here.
    """
    chunk = single_chunk(model)
    config = config_of(chunk)
    rotary = getattr(chunk, "rotary_pos_emb", None)
    return (
        not has_cache(config)
        or capabilities.has_transformer_engine()
        or not config.has_relative_positions
        or (isinstance(rotary, ScaledRotaryEmbedding) and rotary.is_length_dependent)
    )


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


def _flags_to_switch_off(chunk: torch.nn.Module) -> list[tuple[dict[str, object], str, object]]:
    """The attributes that have another value while generating: those of which object, name and present value.

    They are set in the object's dictionary, which takes a tenth of the time that a module takes to set an attribute.
    """
    modules = list(chunk.modules())
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    return [
        (attributes, name, attributes[name])
        for attributes in map(vars, (*modules, *configs.values()))
        for name, value in _SWITCHED_OFF.items()
        if attributes.get(name, value) != value
    ]


@contextmanager
def _switched_off(flags: list[tuple[dict[str, object], str, object]]) -> Iterator[None]:
    for attributes, name, _ in flags:
        attributes[name] = _SWITCHED_OFF[name]
    try:
        yield
    finally:
        for attributes, name, value in flags:
            attributes[name] = value
