"""torch_dist checkpoints, written and read tensor by tensor, without ever holding all of them.

The format is the one that megatron-core 0.19 writes (`dist_checkpointing`, backend `torch_dist`, version 1): the files
of PyTorch's distributed checkpoint (`torch.distributed.checkpoint`, `FileSystemWriter`), in which each chunk is a
`torch.save` archive somewhere in a `.distcp` file, and `.metadata` says where. Layers and experts are stacked on
leading axes of one tensor per key.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Buffer, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
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
from megatron.bridge.transport.boxes import Box, Shape, common_box, num_elements, shifted, slices
from megatron.bridge.transport.checkpoint_metadata import PARSER_ERRORS, StoredChunk, read_metadata
from megatron.bridge.transport.source_files import SourceFiles, is_file

# Where a chunk of a file lies: its key and offset (`None` for what is no tensor), and the position and number of bytes.
type _Place = tuple[str, Sequence[int] | None, int, int]
# What `torch.save` writes before and after the data, for each dtype and shape.
type _Frames = dict[tuple[torch.dtype, torch.Size], tuple[bytes, bytes]]

_CONFIG = "metadata.json"
_BACKEND: dict[str, object] = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# Data of fewer bytes than this cannot be told by its size from what surrounds it in its archive.
_MIN_FRAMED_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk to write: its place in a stacked tensor, and a function that makes its data when its turn comes."""

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
    """Consecutive entries in groups of about `max_bytes`, one group for each file."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if size and size + entry.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def write_entries(entries: Sequence[Entry], stream: BinaryIO) -> dict[str, list[_Place]]:
    """Writes chunks one after the other; returns where they lie, for `write_metadata`."""
    places: list[_Place] = []
    position = 0
    frames: _Frames = {}
    with _without_crc():
        for entry in entries:
            data = entry.produce().detach().reshape(entry.shape).contiguous()
            num_bytes = _write_archive(data, stream, frames)
            places.append((entry.key, entry.global_offset, position, num_bytes))
            position += num_bytes
    return {"places": places}


def _write_archive(data: "Tensor", stream: BinaryIO, frames: _Frames) -> int:
    """Writes a tensor as `torch.save` does; returns the number of bytes.

    Args:
        data: contiguous.
        frames: filled for further tensors. Without CRC, what surrounds the data is the same for all tensors of a dtype
            and shape, and running `torch.save` for each takes longer than moving a small tensor's bytes.
    """
    form = data.dtype, data.shape
    output = _Recorder(stream, data.nbytes)
    if form in frames:
        head, tail = frames[form]
        output.write(head)
        output.write(data.view(-1).view(torch.uint8).numpy())
        output.write(tail)
        return output.num_bytes
    try:
        torch.save(_exact_storage(data), output)  # type: ignore[arg-type]  # torch asks for write and flush alone
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch hides what the stream raised
            raise error.__context__ from error
        raise
    if output.frame is not None:
        frames[form] = output.frame
    return output.num_bytes


def write_objects(objects: Mapping[str, bytes], stream: BinaryIO) -> dict[str, list[_Place]]:
    """Writes serialised non-tensor entries, equal ones once; returns where they lie, for `write_metadata`."""
    places: list[_Place] = []
    known: dict[bytes, tuple[int, int]] = {}
    position = 0
    for key, content in objects.items():
        if content not in known:
            stream.write(content)
            known[content] = (position, len(content))
            position += len(content)
        places.append((key, None, *known[content]))
    return {"places": places}


def write_metadata(
    folder: Path, entries: Iterable[Entry], contents: Mapping[str, Mapping[str, Iterable[_Place]]]
) -> None:
    """Writes `.metadata` and `metadata.json`, which make a checkpoint of the files.

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
    state: dict[str, TensorStorageMetadata | BytesStorageMetadata] = dict(tensors)
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
    (folder / _CONFIG).write_text(json.dumps(_BACKEND))


class _PortablePickler(pickle.Pickler):
    """Writes tensor properties in a form that older versions of PyTorch can read too (strides are new in 2.12)."""

    def reducer_override(self, obj: object) -> Any:  # of pickle's own type
        if isinstance(obj, TensorProperties):
            return TensorProperties, (), tuple(obj.__getstate__())[:5]
        return NotImplemented


class _Recorder:
    """Passes writes on in full, counts their bytes, and keeps what surrounds the data.

    Args:
        data_bytes: the size of the data; small data cannot be told from what surrounds it.
    """

    def __init__(self, stream: BinaryIO, data_bytes: int) -> None:
        self._stream, self._data_bytes = stream, data_bytes
        self._written: list[bytes | None] = []  # `None` stands for the data
        self.num_bytes = 0

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        is_data = size == self._data_bytes and size >= _MIN_FRAMED_BYTES
        self._written.append(None if is_data else bytes(view[:_MIN_FRAMED_BYTES]))
        while view:  # a raw file may write less than it was given
            view = view[self._stream.write(view) :]
        self.num_bytes += size
        return size

    @property
    def frame(self) -> tuple[bytes, bytes] | None:
        """The bytes before and after the data, or `None` if it was not one write among small ones."""
        if self._written.count(None) != 1:
            return None
        place = self._written.index(None)
        head, tail = (b"".join(filter(None, part)) for part in (self._written[:place], self._written[place + 1 :]))
        return (head, tail) if len(head) + self._data_bytes + len(tail) == self.num_bytes else None

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _without_crc() -> Iterator[None]:
    """Switches zip's CRC off in this thread: it would take half of the time, and `torch.load` ignores it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _exact_storage(tensor: "Tensor") -> "Tensor":
    """The same contiguous data, with a storage of exactly its size, because `torch.save` writes whole storages."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == tensor.nbytes:
        return tensor
    start = tensor.storage_offset() * tensor.itemsize
    part = storage[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(part, 0, tensor.shape, tensor.stride())


class TorchDistReader:
    """Reads boxes of the tensors in a torch_dist checkpoint, whatever layout it was saved from.

    The folder is data: `.metadata` is read without running anything that it names, tensors are read with
    `weights_only`, files outside the folder are refused, and so are chunks that overlap or leave gaps.

    `TorchDistReader(folder).read(key, ((0, 8), (0, 4)))` gives the first 8 rows of a tensor `[N, 4]`.

    Args:
        folder: holds `.metadata` and `metadata.json`.

    Attributes:
        tensors: shape, dtype and chunks of each tensor, by key.
        objects: the place of each entry that is not a tensor, by key.
        files: `.metadata` and the files that it names.

    Raises:
        CheckpointError: not a torch_dist checkpoint, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _CONFIG).is_file() or not (folder / ".metadata").is_file():
            raise CheckpointError(f"{folder}: no torch_dist checkpoint ({_CONFIG} and .metadata are expected)")
        _check_backend(folder / _CONFIG)
        self.files = SourceFiles()
        self.files.add(folder / ".metadata")
        content = read_metadata(folder / ".metadata")
        self.tensors = content.tensors
        self.objects = content.objects
        self._chunks = {key: _ChunkIndex(tensor.chunks) for key, tensor in content.tensors.items()}
        self._checked: dict[tuple[torch.dtype, Shape, int], _Archive] = {}
        places = [chunk.filename for tensor in self.tensors.values() for chunk in tensor.chunks]
        for name in sorted({*places, *(filename for filename, _, _ in self.objects.values())}):
            self._add_file(name)

    def parts(self, key: str, box: Box) -> list[tuple[Box, "Tensor"]]:
        """The stored pieces of `key` inside `box`: the box of each, and a view of the memory-mapped file.

        Raises:
            CheckpointError: the key is absent, its chunks do not cover the box exactly once, a chunk is damaged, or its
                file was altered since it was opened.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.folder}: no tensor {key}")
        chunks, origins, boxes = [], [], []
        for chunk in self._chunks[key].near(box):
            origin = _box(chunk)
            if (common := common_box(origin, box)) is not None:
                chunks.append(chunk)
                origins.append(origin)
                boxes.append(common)
        covered = sum(num_elements(common) for common in boxes)
        overlap = any(common_box(a, b) for index, a in enumerate(boxes) for b in boxes[:index])
        if overlap or covered != num_elements(box):
            raise CheckpointError(
                f"{self.folder / '.metadata'}: the chunks of {key} do not cover {box} exactly once: it is damaged"
            )
        return [
            (common, self._view(key, chunk)[slices(shifted(common, origin))])
            for common, chunk, origin in zip(boxes, chunks, origins, strict=True)
        ]

    def read(self, key: str, box: Box) -> "Tensor":
        """The elements of `key` in `box`, stacked axes included: a view if they are stored together, else a copy."""
        parts = self.parts(key, box)
        if len(parts) == 1:
            return parts[0][1]
        out = torch.empty([stop - start for start, stop in box], dtype=self.tensors[key].dtype)
        for part_box, part in parts:
            out[slices(shifted(part_box, box))] = part
        return out

    def check_objects(self, keys: Iterable[str]) -> None:
        """Makes sure that entries hold nothing but data, on behalf of a loader that would run whatever they name.

        Raises:
            CheckpointError: an entry is damaged, or names something that `torch.load(weights_only=True)` refuses.
        """
        for key in keys:
            filename, offset, length = self.objects[key]
            label = f"{self.folder / filename}: {key}"
            data = self._bytes(label, filename, offset, length)
            try:
                _load(data)
            except PARSER_ERRORS as error:
                raise CheckpointError(f"{label}: damaged, or not only data: {error!s:.300}") from error

    def _view(self, key: str, chunk: StoredChunk) -> "Tensor":
        """A chunk's tensor on the memory map. Its archive says how the data lies; the data itself is not read."""
        label = f"{self.folder / chunk.filename}: {key} at {list(chunk.offsets)}"
        data = self._bytes(label, chunk.filename, chunk.offset, chunk.length)
        dtype = self.tensors[key].dtype
        form = dtype, chunk.sizes, chunk.length
        archive = self._checked.get(form)
        if archive is None or not archive.is_like(data):
            try:
                archive = self._checked[form] = _check_archive(data, dtype, chunk.sizes)
            except (*PARSER_ERRORS, zipfile.BadZipFile) as error:
                raise CheckpointError(f"{label}: the archive is damaged: {error!s:.300}") from error
        if archive.size == 0:
            return torch.empty(chunk.sizes, dtype=dtype)
        flat = torch.frombuffer(data, dtype=dtype, count=archive.size // dtype.itemsize, offset=archive.start)
        return flat.as_strided(chunk.sizes, archive.strides)

    def _bytes(self, label: str, filename: str, offset: int, length: int) -> memoryview:
        self.files.check(self.folder / filename)
        content = self.files.map(self.folder / filename)
        if offset + length > len(content):
            raise CheckpointError(
                f"{label}: the file is cut short, {offset + length} bytes expected, found {len(content)}"
            )
        return content[offset : offset + length]

    def _add_file(self, name: str) -> None:
        path = self.folder / name
        if "\0" in name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise CheckpointError(f"{self.folder / '.metadata'}: names a file outside the folder: {name!r:.200}")
        if not is_file(path) or path.stat().st_size == 0:
            raise CheckpointError(f"{path!s:.1000}: missing or empty, but .metadata names it. Fetch it again.")
        self.files.add(path)


class _ChunkIndex:
    """A tensor's chunks, sorted by place: a stacked tensor has one or more for each layer and expert."""

    def __init__(self, chunks: Iterable[StoredChunk]) -> None:
        self._chunks = sorted(chunks)
        self._offsets = [chunk.offsets for chunk in self._chunks]
        self._largest = [max(sizes) for sizes in zip(*(chunk.sizes for chunk in self._chunks), strict=True)]

    def near(self, box: Box) -> Sequence[StoredChunk]:
        """The chunks that may overlap `box`."""
        first: list[int] = []
        last: list[int] = []
        for (start, stop), size in zip(box, self._largest, strict=True):
            first.append(start - size + 1)
            last.append(stop - 1)
            if first[-1] != last[-1]:  # chunks are sorted by the next axis only where their place on this one is equal
                break
        return self._chunks[bisect_left(self._offsets, tuple(first)) : bisect_right(self._offsets, (*last, inf))]


def _box(chunk: StoredChunk) -> Box:
    return tuple([(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True)])


def _is_dense(tensor: "Tensor") -> bool:
    """Whether the strides are those of a contiguous tensor with permuted axes, which PyTorch's writer keeps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _check_backend(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
        backend = config["sharded_backend"], config.get("sharded_backend_version", 1)
    except (*PARSER_ERRORS, OSError) as error:
        raise CheckpointError(f"{path}: malformed ({error!s:.200}). Fetch it again.") from error
    if backend != (_BACKEND["sharded_backend"], _BACKEND["sharded_backend_version"]):
        raise CheckpointError(
            f"{path}: the format is {backend[0]!r:.50} version {backend[1]!r:.50}, not torch_dist version 1; "
            "save the checkpoint with megatron-core's torch_dist format"
        )


@dataclass(frozen=True)
class _Archive:
    """The form of a tensor's archive that was checked and found right.

    Attributes:
        start: the byte at which the data begins.
        size: the size of the data, in bytes.
        strides: the tensor's strides, in elements.
        head: the bytes before the data.
        tail: the bytes after it.
    """

    start: int
    size: int
    strides: tuple[int, ...]
    head: bytes
    tail: bytes

    def is_like(self, data: memoryview) -> bool:
        """Whether an archive differs from this one in its data alone, and is therefore right as well."""
        return data[: self.start] == self.head and data[self.start + self.size :] == self.tail


def _check_archive(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> _Archive:
    """Reads how a tensor lies in its archive, but not its data.

    Raises:
        ValueError, zipfile.BadZipFile, and what `torch.load` raises: it is another tensor, or damaged.
    """
    start, size = _data_record(data)
    with torch.serialization.skip_data():
        form = _load(data)
    if not isinstance(form, torch.Tensor) or tuple(form.shape) != shape or form.dtype != dtype:
        found = f"{form.dtype} {list(form.shape)}" if isinstance(form, torch.Tensor) else type(form).__name__
        raise ValueError(f"expected {dtype} {list(shape)}, found {found}")
    if form.storage_offset() or form.numel() * dtype.itemsize != size or not _is_dense(form):
        raise ValueError("its elements are not the data, each once")
    return _Archive(start, size, form.stride(), bytes(data[:start]), bytes(data[start + size :]))


def _load(data: memoryview) -> object:
    """What a `torch.save` archive holds, if that is data alone."""
    source: BinaryIO = _Segment(data)  # type: ignore[assignment]  # nothing is written to it
    return torch.load(source, map_location="cpu", weights_only=True)


def _data_record(data: memoryview) -> tuple[int, int]:
    """Where a tensor's bytes lie in its archive: start and size.

    `torch.load` checks little of an archive's structure and would take bytes from a wrong place, so it is checked here.

    Raises:
        ValueError: the form is not the one that `torch.save` writes for one tensor.
        zipfile.BadZipFile, struct.error: this is no zip file.
    """
    with zipfile.ZipFile(_Segment(data)) as archive:
        records = sorted(archive.infolist(), key=lambda record: record.header_offset)
        ends = [*(record.header_offset for record in records[1:]), archive.start_dir]
    place = None
    for record, end in zip(records, ends, strict=True):
        _, _, name = record.filename.partition("/")
        if name == "data/0":
            place = _extent(data, record, end)
        elif name.startswith("data/"):
            raise ValueError(f"more data than a tensor's: {name:.100}")
        elif name == "byteorder":
            start, size = _extent(data, record, end)
            if data[start : start + size] != b"little":
                raise ValueError("its bytes are not in little-endian order")
    if place is None:
        raise ValueError("it has no record data/0")
    return place


def _extent(data: memoryview, record: zipfile.ZipInfo, end: int) -> tuple[int, int]:
    """Where the content of a record lies: start and size. The next record, or the directory, begins at `end`.

    Records are not compressed. The content follows a local header (30 bytes, name, extra field), and is followed by a
    descriptor of 16 bytes, by one of 24 if there are more than 4 GiB, or by none (APPNOTE.TXT 4.3.7-4.3.9).
    """
    signature, name_length, extra_length = struct.unpack_from("<4s22xHH", data, record.header_offset)
    start = record.header_offset + 30 + name_length + extra_length
    if signature != b"PK\3\4":
        raise ValueError("a record is not where the directory says")
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 or record.compress_size != record.file_size:
        raise ValueError("its data is compressed or encrypted")
    if end - start - record.file_size not in (0, 16, 24):
        raise ValueError("the directory and the records disagree about sizes")
    return start, record.file_size


class _Segment(io.RawIOBase):
    """Part of a file in memory, as a file of its own."""

    def __init__(self, data: memoryview) -> None:
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

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer)
        part = self._data[self._position : self._position + len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)
