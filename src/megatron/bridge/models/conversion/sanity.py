"""Compares samples of a checkpoint's numbers with what the weights of a layer, trained or not, can look like.

Raw quantised numbers would convert without an error into a model that knows nothing. The reader recognises them by
their dtypes and companions; this looks at the numbers themselves, and notices those that the reader let pass.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from megatron.bridge.errors import QuantizationError

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.bridge.models.conversion.layout import Sliceable
    from megatron.bridge.models.conversion.plan import WeightConversionTask

# Of the weights with the same place in a layer, how many are sampled, spread over the model; and elements of each.
_TASKS_PER_GROUP, _ELEMENTS = 16, 16384

type Read = Callable[[WeightConversionTask], Mapping[str, Sliceable]]  # a task's HF tensors by role


class _Limit(NamedTuple):
    """The most that samples of one kind of weight may have."""

    std: float
    largest: float


# If a layer's matrix preserves the size of what it multiplies, its standard deviation is about 1 / sqrt(inputs): 0.006
# to 0.06 for 32,768 to 256 inputs. That of embeddings may be 1, and norms follow the activations. Raw codes have 2.4
# (4-bit floats), 4.6 (4-bit integers), 13 and more (FP8) or 74 (bytes).
_LIMITS = {"matrix": _Limit(1.5, 1e3), "embedding": _Limit(30.0, 1e4), "other": _Limit(1e4, 1e6)}


class Sample(NamedTuple):
    """Statistics of part of one HF tensor."""

    name: str
    kind: str
    std: float
    largest: float
    is_finite: bool

    @property
    def problem(self) -> str | None:
        """Why no weight of this kind can look like this; `None` if one can."""
        limit = _LIMITS[self.kind]
        if not self.is_finite:
            return f"{self.name}: holds NaN or Inf"
        if self.std > limit.std or self.largest > limit.largest:
            return (
                f"{self.name}: standard deviation {self.std:.3g} and largest number {self.largest:.3g}, where a weight "
                f"of its kind ({self.kind}) has at most {limit.std:g} and {limit.largest:g}"
            )
        return None


def check_weights(tasks: Iterable["WeightConversionTask"], read: Read, model_name: str) -> None:
    """Samples the tensors that the tasks read.

    Args:
        read: returns the HF tensors of a task, by role.
        model_name: the name of the checkpoint, for errors.

    Raises:
        QuantizationError: numbers that no initialised or trained layer has; nothing was written.
    """
    problems = [problem for sample in samples(tasks, read) if (problem := sample.problem) is not None]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems[:10])
        raise QuantizationError(
            f"{model_name}: these numbers do not look like weights; nothing was converted. {len(problems)} sample(s):\n"
            f"{lines}\nThey may be quantised numbers without their scales, or damaged. Look at the checkpoint with "
            "`megatron-bridge inspect`; if the weights are meant to be so, pass --force (force=True)."
        )


def samples(tasks: Iterable["WeightConversionTask"], read: Read) -> list[Sample]:
    """Statistics of part of each HF tensor, for some of the tasks in every group."""
    groups: dict[str, list[WeightConversionTask]] = {}
    for task in tasks:
        groups.setdefault(_group(task.global_param_name), []).append(task)
    sampled = []
    for group in groups.values():
        for task in group[:: -(-len(group) // _TASKS_PER_GROUP)]:
            names = task.mapping.hf_names
            for role, view in read(task).items():
                sampled.append(_sample(names[role], _kind(task.global_param_name, len(view.shape)), _part(view)))
    return sampled


def _group(param_name: str) -> str:
    """The place of a parameter in a layer, the same for all layers and experts."""
    return "".join(character for character in param_name if not character.isdigit())


def _kind(param_name: str, num_axes: int) -> str:
    if param_name.startswith(("embedding.", "output_layer.")) or "word_embeddings" in param_name:
        return "embedding"
    # Routers, convolutions and the numbers of state space models may be larger.
    is_linear = (num_axes > 1 and ".linear_" in param_name) or "proj.weight" in param_name
    return "matrix" if is_linear else "other"


def _part(view: "Sliceable") -> "Tensor":
    """The first rows of a tensor, with about `_ELEMENTS` elements."""
    shape = view.shape
    if not shape:
        return view[()]
    index: list[slice] = []
    num_rows = _ELEMENTS
    for size in reversed(shape):
        taken = min(size, max(num_rows, 1))
        index.insert(0, slice(0, taken, 1))
        num_rows //= max(size, 1)
    return view[tuple(index)]


def _sample(name: str, kind: str, part: "Tensor") -> Sample:
    numbers = part.double().flatten()
    if not numbers.numel():
        return Sample(name, kind, 0.0, 0.0, True)
    std = float(numbers.std(correction=0))
    return Sample(name, kind, std, float(numbers.abs().max()), bool(numbers.isfinite().all()))
