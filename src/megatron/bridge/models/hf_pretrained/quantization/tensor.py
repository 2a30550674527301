"""What all quantisations have in common: several stored tensors that stand for one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.number_range import check_range, is_finite, narrows
from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.config import JsonObject

    Index = tuple[slice | int, ...]


class Stored(Protocol):
    """A stored tensor, without its data; `code` is its safetensors dtype, such as "F8_E4M3"."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def code(self) -> str: ...


class Problem(NamedTuple):
    """What is wrong with some stored tensors, which the text names."""

    names: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class QuantizedTensor(ABC):
    """One tensor of a model, stored in a quantised form.

    Attributes:
        name: the tensor's HF name, as in a checkpoint that is not quantised.
        shape: the shape of the tensor that is meant.
        parts: the names of the stored tensors, by role: "weight", "scale", ...
    """

    name: str
    shape: Shape
    parts: Mapping[str, str]

    @property
    @abstractmethod
    def format(self) -> str:
        """The kind of quantisation and its granularity, in a few words."""

    @property
    def unread(self) -> tuple[str, ...]:
        """Roles of small stored tensors whose contents say more than their headers; after `read`, none are left.

        Until then, `shape` has as many elements as the headers tell, or a few more.
        """
        return ()

    def read(self, contents: Mapping[str, bytes]) -> QuantizedTensor:
        """The same tensor, completed by what these stored tensors say.

        Args:
            contents: the bytes of the tensors in `unread`, by role.

        Raises:
            QuantizationError: they do not fit the other tensors, or cannot be read.
        """
        return self

    @classmethod
    @abstractmethod
    def find(cls, stored: Mapping[str, Stored], config: JsonObject) -> Iterator[QuantizedTensor | Problem]:
        """The tensors of this kind among the stored ones, and what is wrong with others that look like this kind.

        Args:
            stored: all stored tensors, by name.
            config: the model's `quantization_config`; may be empty.
        """

    @abstractmethod
    def dequantize(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        """Writes a box of the tensor into `out`, in blocks of bounded size.

        Args:
            parts: the stored tensors, by role; only the slices that the box needs are touched.
            box: a box of a tensor of `shape`.
            out: has the shape of the box and a floating-point dtype, and is contiguous.
        """


class QuantizedView:
    """A tensor that is computed when it is sliced: it has a tensor's shape and dtype, and `view[index]` is a tensor.

    Args:
        name: of the tensor, for errors.
        tensor: what is stored.
        parts: the stored tensors, by role.
        dtype: the dtype of the slices.
    """

    def __init__(
        self, name: str, tensor: QuantizedTensor, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        self._name, self._tensor, self._parts, self.dtype = name, tensor, parts, dtype
        self.shape = tensor.shape

    @property
    def itemsize(self) -> float:
        """Stored bytes per element."""
        return sum(part.nbytes for part in self._parts.values()) / max(prod(self.shape), 1)

    def __getitem__(self, index: Index) -> torch.Tensor:
        """The part of the tensor at an index, which is made of whole numbers and of slices with steps of 1 or more."""
        import torch

        box = tuple(_bounds(position, size) for position, size in zip(index, self.shape, strict=True))
        out = torch.empty([stop - start for start, stop in box], dtype=self.dtype)
        if out.numel():
            self._tensor.dequantize(self._parts, box, out)
            if narrows(torch.float32, self.dtype) and not is_finite(out):
                wide = torch.empty_like(out, dtype=torch.float32)
                self._tensor.dequantize(self._parts, box, wide)
                check_range(out, wide, self._name)
        return out[tuple(0 if isinstance(p, int) else slice(None, None, p.step) for p in index)]

    def whole(self) -> torch.Tensor:
        """All of it."""
        return self[tuple(slice(0, size, 1) for size in self.shape)]


def _bounds(position: slice | int, size: int) -> tuple[int, int]:
    if isinstance(position, int):
        return position, position + 1
    start, stop, step = position.indices(size)
    assert step > 0, "a negative step is no part of any layout"
    return start, max(start, stop)


def scale_names(name: str) -> tuple[str, ...]:
    """The names that the scale of a tensor may have, in the order in which they are looked for.

    They are those of transformers 5.23 (`weight_scale_inv`; and `scale`, `qscale_weight`, which it renames), of
    compressed-tensors (`weight_scale`) and of ModelOpt, also for parameters whose names do not end in `.weight`.
    """
    stem = name.removesuffix(".weight")
    names = (f"{name}_scale_inv", f"{name}_scale", f"{name}_weight_scale_inv", f"{name}_weight_scale")
    return names if stem == name else (*names, f"{stem}.scale", f"{stem}.qscale_weight")


def group_weights(config: JsonObject) -> list[JsonObject]:
    """What compressed-tensors' config says about the weights of each group of layers."""
    return [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]


def places(box: Box, out: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """For each matrix that a box touches, its place along the leading axes and its part of `out`."""
    leading = box[:-2]
    for place in product(*(range(start, stop) for start, stop in leading)):
        yield place, out[tuple(index - start for index, (start, _) in zip(place, leading, strict=True))]


def block_shape(
    name: str, shape: Sequence[int], scale_name: str, scale_shape: Sequence[int], stated: Sequence[Sequence[int]]
) -> Shape:
    """The sizes, axis by axis, of the block of a tensor that one number of its scale applies to.

    A scale of one number, in any number of axes, applies to the whole tensor. One with fewer axes than the tensor has
    its first axes (a number for each output channel). Otherwise each axis has a number for each block, the last of
    which may be cut. The block is one that the config states, if that gives the scale's shape. If not, each axis has
    one number, or one for each element or, if no block is stated, one for each block of a size that divides the axis.

    Weights `[512, 256]` with a scale `[4, 2]` have blocks of (128, 128).

    Args:
        stated: the blocks of the last axes that the config names.

    Raises:
        QuantizationError: no block fits.
    """
    shape, grid = tuple(shape), tuple(scale_shape)
    if prod(grid) == 1:
        return shape
    grid = (*grid, *(1,) * (len(shape) - len(grid)))
    if len(grid) == len(shape):
        for sizes in stated:
            block = (*(1,) * (len(shape) - len(sizes)), *sizes)
            if tuple(-(-size // step) for size, step in zip(shape, block, strict=True)) == grid:
                return block
        is_even = not any(steps == 0 or size % steps for size, steps in zip(shape, grid, strict=True))
        if is_even and (not stated or all(steps in (1, size) for size, steps in zip(shape, grid, strict=True))):
            return tuple(size // steps for size, steps in zip(shape, grid, strict=True))
    hint = (
        f"with blocks of {' or '.join(' x '.join(map(str, sizes)) for sizes in stated)}" if stated else "with any block"
    )
    raise QuantizationError(
        f"{scale_name}: a scale of shape {list(scale_shape)} does not fit {name} of shape {list(shape)} {hint}, and "
        f"quantization_config states {'no other' if stated else 'none'} (weight_block_size, or config_groups)"
    )
