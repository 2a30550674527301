"""Writing safetensors weights, tensor by tensor and in any order, into files that are laid out beforehand."""

import bisect
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.safetensors_format import (
    INDEX_NAME,
    TensorInfo,
    encode_header,
    library_order,
    write_index,
)

if TYPE_CHECKING:
    import torch

_PARTIAL_SUFFIX = ".partial"
_DEFAULT_METADATA = {"format": "pt"}  # transformers wants it in every file


def plan_shards(infos: Iterable[TensorInfo], max_shard_bytes: int = 5 * 10**9) -> dict[str, list[TensorInfo]]:
    """Distributes tensors over files as transformers' `save_pretrained` does.

    Tensors fill a file in the given order until the next one would exceed `max_shard_bytes`; a tensor larger than that
    gets a file of its own. Within a file, the order is that of safetensors' `save_file`, which keeps tensors aligned.

    Returns:
        File name (`model.safetensors`, or `model-00001-of-0000N.safetensors`) to its tensors in file order, each with
        `filename` set to that file.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_name: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in by_name:
            raise CheckpointError(f"{info.name}: the same tensor twice in one checkpoint.")
        by_name[info.name] = info
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda info: info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    return {
        filename: library_order(by_name[name]._replace(filename=filename) for name in names)
        for filename, names in split.filename_to_tensors.items()
    }


class SafetensorsWriter:
    """Writes a folder's weights. Each file has its final size from the start, so tensors may arrive in any order.

    Files are written as `<name>.partial` and get their names in `close()`, once every byte of all of them is there;
    files that had these names before are replaced. As a context manager, the writer closes on success and removes the
    partial files on an exception. `write` and `write_rows` may be called from several threads. Several processes may
    each write some of the files: give each its `files`, and let one write the index. For example:
    `with SafetensorsWriter(folder, plan_shards(infos)) as writer: writer.write("lm_head.weight", tensor)`.

    Args:
        folder: the output folder; made if absent.
        shards: all files of the checkpoint, each with its tensors in file order (`plan_shards`, or a source's layout).
        file_metadata: each file's `__metadata__`; if None, `{"format": "pt"}` for all.
        index_metadata: the index's "metadata"; its `total_size` is set to the bytes of all tensors.
        files: the files that this writer writes; if None, all.
        writes_index: whether `close()` writes an index, if there is more than one file or `index_metadata` is given.

    Raises:
        CheckpointError: the plan is inconsistent, or the folder holds other weights that a reader would mix up with
            these.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: Mapping[str, Sequence[TensorInfo]],
        file_metadata: Mapping[str, dict[str, str]] | None = None,
        index_metadata: Mapping[str, object] | None = None,
        files: Collection[str] | None = None,
        writes_index: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.files = list(shards) if files is None else list(files)
        has_index = len(shards) > 1 or index_metadata is not None
        self._shards, self._index_metadata, self._writes_index = shards, index_metadata, writes_index
        _check_plan(self.folder, shards, self.files, has_index)
        self._infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._written: dict[str, list[tuple[int, int]]] = {}  # by tensor: disjoint byte ranges, sorted, merged
        self._missing: dict[str, int] = {}  # by file: bytes not yet written
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        try:
            for filename in self.files:
                metadata = _DEFAULT_METADATA if file_metadata is None else file_metadata.get(filename)
                self._create(filename, shards[filename], metadata)
        except (OSError, CheckpointError):
            self.abort()
            raise

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        """Writes a whole tensor.

        Raises:
            CheckpointError: the name is unknown, shape or dtype are not as planned, or the tensor was written before.
        """
        info = self._info(name)
        if tuple(tensor.shape) != info.shape:
            raise CheckpointError(f"{name}: expected shape {list(info.shape)}, found {list(tensor.shape)}.")
        self._write_bytes(info, 0, tensor)

    def write_rows(self, name: str, first_row: int, tensor: "torch.Tensor") -> None:
        """Writes rows `[first_row, first_row + tensor.shape[0])` of a tensor's first dim.

        Raises:
            CheckpointError: as for `write`; or rows are outside the tensor, or were written before.
        """
        info = self._info(name)
        if not info.shape or not tensor.dim() or tuple(tensor.shape[1:]) != info.shape[1:]:
            raise CheckpointError(
                f"{name}: expected rows of shape {list(info.shape[1:])}, of a tensor of shape "
                f"{list(info.shape)}; found rows of a tensor of shape {list(tensor.shape)}."
            )
        last_row = first_row + tensor.shape[0]
        if first_row < 0 or last_row > info.shape[0]:
            raise CheckpointError(f"{name}: rows {first_row} to {last_row} are outside its {info.shape[0]} rows.")
        row_nbytes = info.nbytes // info.shape[0] if info.shape[0] else 0
        self._write_bytes(info, first_row * row_nbytes, tensor)

    def close(self) -> None:
        """Gives the files their names and writes the index.

        Raises:
            CheckpointError: tensors are missing (the message names each of them); then no file gets its name.
        """
        if self._closed:
            return
        incomplete = []
        for name, info in self._infos.items():
            num_written = sum(stop - start for start, stop in self._written[name])
            if num_written < info.nbytes:
                incomplete.append(f"{name} ({num_written} of {info.nbytes} bytes)")
        if incomplete:
            self.abort()
            raise CheckpointError(
                f"{self.folder}: {len(incomplete)} of {len(self._infos)} tensors were not completely "
                f"written: {', '.join(incomplete)}. Nothing was saved."
            )
        self._closed = True
        for filename in self.files:
            os.replace(self._partial(filename), self.folder / filename)
        if self._writes_index:
            write_index(self.folder, self._shards, self._index_metadata)

    def abort(self) -> None:
        """Gives up, and removes this writer's partial files."""
        self._closed = True
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        for filename in self.files:
            if self._partial(filename).is_file():
                self._partial(filename).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _create(self, filename: str, infos: Sequence[TensorInfo], metadata: dict[str, str] | None) -> None:
        header, offsets = encode_header(infos, metadata)
        self._infos.update({info.name: info._replace(filename=filename) for info in infos})
        self._offsets.update(offsets)
        self._written.update({info.name: [] for info in infos})
        self._missing[filename] = sum(info.nbytes for info in infos)
        partial = self._partial(filename)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + self._missing[filename])

    def _partial(self, filename: str) -> Path:
        return self.folder / (filename + _PARTIAL_SUFFIX)

    def _info(self, name: str) -> TensorInfo:
        if self._closed:
            raise CheckpointError(f"{name}: the writer of {self.folder} is closed.")
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(
                f"{name}: no such tensor in the files that this writer writes ({', '.join(self.files)})."
            )
        return info

    def _write_bytes(self, info: TensorInfo, start: int, tensor: "torch.Tensor") -> None:
        """Writes the tensor's bytes into `info`'s data, from byte `start` on."""
        if tensor.dtype != info.dtype:
            raise CheckpointError(f"{info.name}: expected dtype {info.dtype}, found {tensor.dtype}.")
        buffer = _buffer(tensor)
        if not buffer.nbytes:
            return
        with self._lock:
            if not _add_range(self._written[info.name], start, start + buffer.nbytes):
                raise CheckpointError(
                    f"{info.name}: bytes {start} to {start + buffer.nbytes} of it, or some of them, "
                    "were already written: each must be written once."
                )
            descriptor = self._descriptors.get(info.filename)
            if descriptor is None:
                descriptor = os.open(self._partial(info.filename), os.O_WRONLY)
                self._descriptors[info.filename] = descriptor
        position, num_written = self._offsets[info.name] + start, 0
        while num_written < buffer.nbytes:  # one call writes at most 2 GiB on Linux
            num_written += os.pwrite(descriptor, buffer[num_written:], position + num_written)
        with self._lock:
            self._missing[info.filename] -= buffer.nbytes
            if not self._missing[info.filename]:  # keeps the number of open files small
                os.close(self._descriptors.pop(info.filename))


def _buffer(tensor: "torch.Tensor") -> memoryview:
    """The tensor's bytes; a copy only if it is not contiguous or not on CPU."""
    import torch

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _add_range(ranges: list[tuple[int, int]], start: int, stop: int) -> bool:
    """Adds `[start, stop)` to sorted disjoint ranges and merges neighbours. On an overlap, changes nothing: False."""
    place = bisect.bisect(ranges, (start, stop))
    if (place > 0 and ranges[place - 1][1] > start) or (place < len(ranges) and ranges[place][0] < stop):
        return False
    if place < len(ranges) and ranges[place][0] == stop:
        stop = ranges.pop(place)[1]
    if place > 0 and ranges[place - 1][1] == start:
        place -= 1
        start = ranges.pop(place)[0]
    ranges.insert(place, (start, stop))
    return True


def _check_plan(
    folder: Path, shards: Mapping[str, Sequence[TensorInfo]], files: Collection[str], has_index: bool
) -> None:
    unknown = [filename for filename in files if filename not in shards]
    if unknown:
        raise CheckpointError(f"{folder}: files to write that are not in the plan: {', '.join(unknown)}.")
    names = [info.name for infos in shards.values() for info in infos]
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError(f"{folder}: planned twice: {', '.join(repeated)}. A tensor belongs to one file.")
    planned = {*shards, INDEX_NAME} if has_index else set(shards)
    existing = [*folder.glob("*.safetensors"), folder / INDEX_NAME]
    stale = sorted(path.name for path in existing if path.exists() and path.name not in planned)
    if stale:
        raise CheckpointError(
            f"{folder}: already holds other weights: {', '.join(stale)}. Remove them, or choose another folder."
        )
