"""Choosing the next token from logits. V is the vocabulary's size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.bridge.errors import BridgeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and how many.

    Attributes:
        max_new_tokens: stop after this many.
        temperature: divides the logits; 0 always takes the most likely token (greedy).
        top_k: choose among the k most likely tokens; 0 for all.
        top_p: choose among the fewest most likely tokens whose probabilities reach p together; 1 for all.
        seed: of the random choices.

    Raises:
        BridgeError: a value out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens must be at least 1, found {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature must be 0 (greedy) or a positive number, found {self.temperature}")
        if self.top_k < 0:
            problems.append(f"top_k must be 0 (off) or positive, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be in (0, 1], found {self.top_p}")
        if problems:
            raise BridgeError(f"SamplingParams: {'; '.join(problems)}")


def sample(logits: "torch.Tensor", params: SamplingParams, generator: "torch.Generator | None" = None) -> int:
    """A token id, chosen from `logits` [V].

    Args:
        generator: on the logits' device; not used by greedy choice.
    """
    import torch

    if params.temperature == 0:
        return int(logits.argmax())
    probabilities = filter_logits(logits, params).softmax(dim=-1)
    return int(torch.multinomial(probabilities, num_samples=1, generator=generator))


def filter_logits(logits: "torch.Tensor", params: SamplingParams) -> "torch.Tensor":
    """The logits [V] to sample from: over the temperature, and -inf outside of top-k, then of top-p.

    Order and edge cases are those of transformers 5.23 (`TemperatureLogitsWarper`, `TopKLogitsWarper`,
    `TopPLogitsWarper`): tokens tied with the k-th stay, and top-p counts among what top-k left.
    """
    logits = logits.float() / params.temperature
    if 0 < params.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -float("inf"))
    if params.top_p < 1:
        ascending, order = logits.sort()
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - params.top_p
        removed[-1] = False
        logits = logits.masked_fill(removed.scatter(0, order, removed), -float("inf"))
    return logits
