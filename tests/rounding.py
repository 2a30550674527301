"""How far numbers may be from those of a reference: the one rule, for every test that compares them.

1e-5 on numbers around 1, or twice what the reference is off from itself in float64: it and we round differently, but as
much. This is measured where it is used, so it holds on every machine. It is measured on the input at hand and on some
like it, because on a single one the reference may be right by luck.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

ROUNDING = 1e-5
# A reference that is off by more than this part of its size is no reference, for example where two experts' scores
# are equal up to rounding: choose another seed.
LIMIT = 1e-3
NUM_INPUTS = 4


def tolerance(computed: Tensor, exact: Tensor) -> float:
    """How far others may be from `computed`, the reference in float32 or less; `exact` is the same in float64."""
    off, size = (computed - exact).abs().max().item(), max(exact.abs().max().item(), 1)
    assert computed.dtype != torch.float32 or off <= LIMIT * size, f"the reference is off by {off:.1e} of {size:.1e}"
    return max(ROUNDING, 2 * off)


def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


@torch.no_grad()
def reference(
    model: Any, tokens: Tensor, compute: Callable[[Any, Tensor], Tensor] = logits, num_inputs: int = NUM_INPUTS
) -> tuple[Tensor, float]:
    """What a model of transformers (or a tuple of them) computes, and how far others may be from it.

    Args:
        tokens: `[B, S]`.
        compute: what is compared, of a model and tokens; default: the logits.
        num_inputs: on how many it is measured.
    """
    wide, results, allowed = in_float64(model), [], 0.0
    for other in inputs_like(tokens, num_inputs):
        results.append(compute(model, other))
        with Float64():
            allowed = max(allowed, tolerance(results[-1], compute(wide, other)))
    return results[0], allowed


def inputs_like(tokens: Tensor, num_inputs: int = NUM_INPUTS) -> list[Tensor]:
    """The tokens `[B, S]`, and the same in some other orders."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(tokens.shape[1], generator=generator) for _ in range(num_inputs - 1)]
    return [tokens, *(tokens[:, order] for order in orders)]


def in_float64(model: Any) -> Any:
    """A copy of a model, or of each of a tuple, with the same weights in float64."""
    model = copy.deepcopy(model)
    for part in model if isinstance(model, tuple) else [model]:
        part.double()
        if isinstance(part, PreTrainedModel):
            part.set_experts_implementation("eager")  # the grouped kernel has no float64
    return model


class Float64(TorchFunctionMode):
    """Where a model asks for float32 (in norms, softmax, rotary embeddings), it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)
