"""Samples of a checkpoint's weights against what the weights of a layer can look like, trained or not.

Raw quantised numbers would convert without an error into a model that knows nothing. The reader finds them by dtype and
companions; this looks at the numbers, so that what gets past it is noticed too.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.errors import QuantizationError

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.bridge.models.conversion.plan import WeightConversionTask

# Weights that have the same place in a layer: how many are looked at, spread over the model, and elements of each.
_TASKS_PER_GROUP, _ELEMENTS = 16, 16384


Read = Callable[["WeightConversionTask"], Mapping[str, Any]]


class _Limit(NamedTuple):
    """What the samples of a kind of weight may be at most."""

    std: float
    largest: float


# A matrix of a layer that keeps the size of what it multiplies has a standard deviation of about 1 / sqrt(inputs), that
# is 0.006 to 0.06 for 32,768 to 256 inputs; embeddings may have 1, and norms follow the activations. Raw codes have 2.4
# (4-bit floats), 4.6 (4-bit integers), 13 and more (FP8), 74 (bytes).
_LIMITS = {"matrix": _Limit(1.5, 1e3), "embedding": _Limit(30.0, 1e4), "other": _Limit(1e4, 1e6)}


class Sample(NamedTuple):
    """Statistics of a part of one HF tensor."""

    name: str
    kind: str
    std: float
    largest: float
    is_finite: bool

    @property
    def problem(self) -> str | None:
        """What no weight of this kind looks like, or `None`."""
        limit = _LIMITS[self.kind]
        if not self.is_finite:
            return f"{self.name}: holds NaN or Inf"
        if self.std > limit.std or self.largest > limit.largest:
            return (
                f"{self.name}: standard deviation {self.std:.3g} and largest number {self.largest:.3g}, where a weight "
                f"of its kind ({self.kind}) has at most {limit.std:g} and {limit.largest:g}"
            )
        return None


def check_weights(tasks: Iterable["WeightConversionTask"], read: Read, what: str) -> None:
    """Samples the tensors that the tasks read.

    Args:
        read: gives a task's HF tensors by role, to be sliced.
        what: the checkpoint, named in errors.

    Raises:
        QuantizationError: numbers that no initialised or trained layer has; nothing was written.
    """
    problems = [problem for sample in samples(tasks, read) if (problem := sample.problem) is not None]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems[:10])
        raise QuantizationError(
            f"{what}: these numbers do not look like weights; nothing was converted. {len(problems)} sample(s):\n"
            f"{lines}\nThey may be quantised numbers without their scales, or damaged. Look at the checkpoint with "
            "`megatron-bridge inspect`; if the weights are meant to be so, pass --force (force=True)."
        )


def samples(tasks: Iterable["WeightConversionTask"], read: Read) -> list[Sample]:
    """Statistics of the HF tensors of some tasks of each kind, a part of each tensor."""
    groups: dict[str, list[WeightConversionTask]] = {}
    for task in tasks:
        groups.setdefault(_group(task.global_param_name), []).append(task)
    found = []
    for group in groups.values():
        for task in group[:: -(-len(group) // _TASKS_PER_GROUP)]:
            names = task.mapping.hf_names
            for role, view in read(task).items():
                found.append(_sample(names[role], _kind(task.global_param_name, len(view.shape)), _part(view)))
    return found


def _group(param_name: str) -> str:
    """The place of a parameter in a layer, the same for all layers and experts."""
    return "".join(character for character in param_name if not character.isdigit())


def _kind(param_name: str, num_axes: int) -> str:
    if param_name.startswith(("embedding.", "output_layer.")) or "word_embeddings" in param_name:
        return "embedding"
    # Routers, convolutions and the numbers of state space models have sizes of their own.
    is_linear = (num_axes > 1 and ".linear_" in param_name) or "proj.weight" in param_name
    return "matrix" if is_linear else "other"


def _part(view: Any) -> "Tensor":
    """The first rows of a tensor, of about `_ELEMENTS`."""
    shape = view.shape
    if not shape:
        scalar: Tensor = view[()]
        return scalar
    index: list[slice] = []
    num_rows = _ELEMENTS
    for size in reversed(shape):
        taken = min(size, max(num_rows, 1))
        index.insert(0, slice(0, taken, 1))
        num_rows //= max(size, 1)
    return view[tuple(index)]  # type: ignore[no-any-return]


def _sample(name: str, kind: str, part: "Tensor") -> Sample:
    numbers = part.double().flatten()
    if not numbers.numel():
        return Sample(name, kind, 0.0, 0.0, True)
    std = float(numbers.std(correction=0))
    return Sample(name, kind, std, float(numbers.abs().max()), bool(numbers.isfinite().all()))
