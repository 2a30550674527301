"""Writing safetensors files from many processes at once, each of which writes the byte ranges of its own boxes."""

import itertools
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from megatron.bridge.models.hf_pretrained.number_range import check_range
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo, encode_header

if TYPE_CHECKING:
    from torch import Tensor

_PARTIAL = ".partial"


class RangeWriter:
    """The weight files of a folder, which are laid out beforehand and filled by several processes.

    One process calls `create`; then, after a barrier, all of them write; then, after another barrier, one calls
    `publish`. The folder must be on a file system that all of them share.

    Args:
        folder: the output folder.
        shards: all files, each with its tensors in file order.
        file_metadata: each file's `__metadata__`; `{"format": "pt"}` if it has none.
    """

    def __init__(
        self,
        folder: Path,
        shards: Mapping[str, Sequence[TensorInfo]],
        file_metadata: Mapping[str, dict[str, str]] | None = None,
    ) -> None:
        self._folder = folder
        self._headers: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._places: dict[str, tuple[str, int, TensorInfo]] = {}
        self._descriptors: dict[str, int] = {}
        self.num_bytes = 0
        for filename, infos in shards.items():
            metadata = (file_metadata or {}).get(filename) or {"format": "pt"}
            header, offsets = encode_header(infos, metadata)
            self._headers[filename] = header
            self._sizes[filename] = len(header) + sum(info.nbytes for info in infos)
            for info in infos:
                self._places[info.name] = (filename, offsets[info.name], info)

    def create(self) -> None:
        """Makes every file under its temporary name, at its final size, with its header."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for filename, header in self._headers.items():
            with self._partial(filename).open("wb") as file:
                file.write(header)
                file.truncate(self._sizes[filename])

    def write_box(self, name: str, index: Sequence[slice | int], tensor: "Tensor") -> None:
        """Writes a box of an HF tensor.

        `writer.write_box("lm_head.weight", (slice(0, 8, 1), slice(0, 4, 1)), rows)` writes its first 8 rows.

        Args:
            index: for each axis of the HF tensor, a slice with explicit start, stop and step, or an int.
            tensor: the box's data in the order of the HF axes, without the axes that an int indexes.
        """
        import torch

        filename, offset, info = self._places[name]
        ranges = [range(i, i + 1) if isinstance(i, int) else range(i.start, i.stop, i.step) for i in index]
        strides = [1] * len(info.shape)
        for axis in range(len(info.shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * info.shape[axis + 1]
        # The trailing axes that form one contiguous run: those that are whole, and one more that is a plain range.
        num_outer = len(ranges)
        while num_outer > 0 and ranges[num_outer - 1].step == 1:
            num_outer -= 1
            if len(ranges[num_outer]) != info.shape[num_outer]:
                break
        converted = tensor.detach().to(info.dtype)
        check_range(converted, tensor.detach(), name)
        flat = converted.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        starts = [each.start * stride for each, stride in zip(ranges[num_outer:], strides[num_outer:], strict=True)]
        inner = sum(starts)
        outer = itertools.product(*ranges[:num_outer])
        run = len(flat) // prod(map(len, ranges[:num_outer]))
        descriptor = self._descriptor(filename)
        for i, indices in enumerate(outer):
            element = inner + sum(index * stride for index, stride in zip(indices, strides, strict=False))
            _write_at(descriptor, memoryview(flat)[i * run : (i + 1) * run], offset + element * info.dtype.itemsize)
        self.num_bytes += len(flat)

    def publish(self) -> None:
        """Gives every file its name. All processes must have left their `with` blocks."""
        for filename in self._headers:
            self._partial(filename).rename(self._folder / filename)

    def _partial(self, filename: str) -> Path:
        return self._folder / f"{filename}{_PARTIAL}"

    def _descriptor(self, filename: str) -> int:
        if filename not in self._descriptors:
            self._descriptors[filename] = os.open(self._partial(filename), os.O_WRONLY)
        return self._descriptors[filename]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            if kind is None:
                os.fsync(descriptor)
            os.close(descriptor)
        self._descriptors.clear()


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
