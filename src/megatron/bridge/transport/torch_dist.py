"""torch_dist checkpoints, written and read tensor by tensor without holding them.

The format is the one that megatron-core 0.19 writes (`dist_checkpointing`, backend `torch_dist`, version 1): the files
of PyTorch's distributed checkpoint (`torch.distributed.checkpoint`, `FileSystemWriter`), in which each chunk is a
`torch.save` archive somewhere in a `.distcp` file, and `.metadata` says where. Layers and experts are stacked on
leading axes of one tensor per key.
"""

import io
import json
import mmap
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion.layout import Box, Shape, common_box, shifted, slices

if TYPE_CHECKING:
    from torch import Tensor

_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One chunk to write: a place in a stacked tensor, and a function that makes its data when its turn comes."""

    key: str
    global_shape: Shape
    global_offset: Shape
    shape: Shape  # of the chunk, stacked axes included as ones
    dtype: torch.dtype
    produce: "Callable[[], Tensor]"

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk's data."""
        return prod(self.shape) * self.dtype.itemsize


def group_entries(entries: Iterable[Entry], max_bytes: int) -> list[list[Entry]]:
    """Consecutive entries, in groups of about `max_bytes`: the content of each file."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if size and size + entry.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def write_entries(entries: Sequence[Entry], stream: Any) -> dict[str, Any]:
    """Writes chunks one after the other; returns where they lie, for `write_metadata`."""
    places = []
    position = 0
    for entry in entries:
        data = _exact_storage(entry.produce().reshape(entry.shape))
        counting = _Counting(stream)
        torch.save(data, counting)
        places.append([entry.key, list(entry.global_offset), position, counting.num_bytes])
        position += counting.num_bytes
    return {"places": places}


def write_objects(objects: Mapping[str, bytes], stream: Any) -> dict[str, Any]:
    """Writes serialised non-tensor entries; equal ones share their bytes."""
    places: list[list[Any]] = []
    known: dict[bytes, tuple[int, int]] = {}
    position = 0
    for key, content in objects.items():
        if content not in known:
            stream.write(content)
            known[content] = (position, len(content))
            position += len(content)
        places.append([key, None, *known[content]])
    return {"places": places}


def write_metadata(folder: Path, entries: Iterable[Entry], contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `.metadata` and `metadata.json`, which make the files a checkpoint.

    Args:
        entries: every chunk of the checkpoint.
        contents: what `write_entries` and `write_objects` returned, by file name.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    for entry in entries:
        if entry.key not in tensors:
            properties = TensorProperties(dtype=entry.dtype)
            tensors[entry.key] = TensorStorageMetadata(properties, torch.Size(entry.global_shape), [])
        chunk = ChunkStorageMetadata(torch.Size(entry.global_offset), torch.Size(entry.shape))
        tensors[entry.key].chunks.append(chunk)
    storage = {}
    state: dict[str, Any] = dict(tensors)
    for name, content in contents.items():
        for key, offset, position, length in content["places"]:
            storage[MetadataIndex(key, offset)] = _StorageInfo(name, position, length)
            if offset is None:
                state[key] = BytesStorageMetadata()
    metadata = Metadata(state, storage_data=storage, version="1.0.0")
    partial = folder / ".metadata.partial"
    with partial.open("wb") as file:
        _PortablePickler(file).dump(metadata)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / ".metadata")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND))


class _PortablePickler(pickle.Pickler):
    """Writes tensor properties in the form that older versions of PyTorch read too (without strides, new in 2.12)."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, TensorProperties):
            return TensorProperties, (), tuple(obj.__getstate__())[:5]
        return NotImplemented


class _Counting:
    """Passes writes on, completely, and counts their bytes."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:  # a raw file may write less than it was given
            view = view[self._stream.write(view) :]
        self.num_bytes += size
        return size

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def without_crc() -> Iterator[None]:
    """Switches off zip's CRC for the whole process: it takes half of the time, and `torch.load` ignores it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _exact_storage(tensor: "Tensor") -> "Tensor":
    """The same contiguous data with a storage of its own size: `torch.save` writes whole storages."""
    tensor = tensor.detach().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() == tensor.nbytes:
        return tensor
    start = tensor.storage_offset() * tensor.itemsize
    part = storage[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(part, 0, tensor.shape)


class TorchDistReader:
    """Reads boxes of the tensors in a torch_dist checkpoint, whatever layout it was saved from.

    Args:
        folder: holds `.metadata` and `metadata.json`.

    Attributes:
        tensors: shape, dtype and chunks of each tensor by key.
        objects: keys of the entries that are not tensors.

    Raises:
        CheckpointError: not a torch_dist checkpoint, or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "metadata.json").is_file() or not (folder / ".metadata").is_file():
            raise CheckpointError(f"{folder}: no torch_dist checkpoint (metadata.json and .metadata are expected)")
        metadata = dcp.FileSystemReader(folder).read_metadata()
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.objects = frozenset(metadata.state_dict_metadata.keys() - self.tensors.keys())
        self._chunks: dict[str, list[tuple[Box, Any]]] = defaultdict(list)
        self._files: dict[str, memoryview] = {}
        for key, entry in self.tensors.items():
            for chunk in entry.chunks:
                info = metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
                if info is None:
                    raise CheckpointError(
                        f"{folder}: {key} at {list(chunk.offsets)} has no data: the checkpoint is damaged"
                    )
                box = tuple((int(o), int(o) + int(s)) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
                self._chunks[key].append((box, info))

    def parts(self, key: str, box: Box) -> list[tuple[Box, "Tensor"]]:
        """The stored pieces of `key` inside `box`, as views of the memory-mapped files, with the box of each.

        Raises:
            CheckpointError: the key is absent, or its chunks do not cover the box exactly once.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.folder}: no tensor {key}")
        found = []
        for chunk, info in self._chunks[key]:
            common = common_box(chunk, box)
            if common is not None:
                found.append((common, self._view(key, chunk, info)[slices(shifted(common, chunk))]))
        if sum(part.numel() for _, part in found) != prod(stop - start for start, stop in box):
            raise CheckpointError(f"{self.folder}: the chunks of {key} do not cover {box}: the checkpoint is damaged")
        return found

    def read(self, key: str, box: Box) -> "Tensor":
        """The elements of `key` in `box` (with the stacked axes): a view if they are stored together, else a copy."""
        parts = self.parts(key, box)
        if len(parts) == 1:
            return parts[0][1]
        out = torch.empty([stop - start for start, stop in box], dtype=self.tensors[key].properties.dtype)
        for part_box, part in parts:
            out[slices(shifted(part_box, box))] = part
        return out

    def _view(self, key: str, chunk: Box, info: Any) -> "Tensor":
        """A chunk's tensor on the memory map. Its archive says how the data lies; the data itself is not read."""
        data = self._file(info.relative_path)[info.offset : info.offset + info.length]
        where = f"{self.folder / info.relative_path}: {key} at {[start for start, _ in chunk]}"
        if len(data) != info.length:
            raise CheckpointError(f"{where}: the file is cut short, {info.length} bytes expected, found {len(data)}")
        try:
            with torch.serialization.skip_data():
                form = torch.load(_Segment(data), map_location="cpu", weights_only=True)
            with zipfile.ZipFile(_Segment(data)) as archive:
                record = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
        except (RuntimeError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{where}: the archive is damaged: {error}") from error
        shape = tuple(stop - start for start, stop in chunk)
        dtype = self.tensors[key].properties.dtype
        if not isinstance(form, torch.Tensor) or tuple(form.shape) != shape or form.dtype != dtype:
            raise CheckpointError(f"{where}: expected a {dtype} tensor of shape {list(shape)}, found {form!r:.80}")
        # A zip record's data follows its local header: 30 bytes, then name and extra field (APPNOTE.TXT 4.3.7).
        header = record.header_offset
        name_length = int.from_bytes(data[header + 26 : header + 28], "little")
        extra_length = int.from_bytes(data[header + 28 : header + 30], "little")
        start = header + 30 + name_length + extra_length
        count = record.file_size // dtype.itemsize
        if form.storage_offset() + form.numel() > count or start + record.file_size > len(data):
            raise CheckpointError(f"{where}: the archive's data is shorter than its tensor")
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start)
        return flat.as_strided(form.shape, form.stride(), form.storage_offset())

    def _file(self, name: str) -> memoryview:
        if name not in self._files:
            path = (self.folder / name).resolve()
            if not path.is_relative_to(self.folder.resolve()):
                raise CheckpointError(f"{self.folder}: .metadata names a file outside the folder: {name}")
            if not path.is_file() or path.stat().st_size == 0:
                raise CheckpointError(f"{path}: missing or empty, but .metadata names it")
            with path.open("rb") as file:
                # A private map: torch wants writable memory, and nothing written to it reaches the file.
                self._files[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return self._files[name]


class _Segment(io.RawIOBase):
    """A part of a file in memory, as a file of its own."""

    def __init__(self, data: memoryview):
        super().__init__()
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._data)}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
