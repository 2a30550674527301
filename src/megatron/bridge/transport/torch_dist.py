"""torch_dist checkpoints: written and read tensor by tensor, through PyTorch's distributed-checkpoint files.

The format is the one that megatron-core 0.19 writes (`dist_checkpointing`, backend `torch_dist`, version 1): PyTorch
distributed-checkpoint files with one entry per key, layers and experts stacked on leading axes, and `metadata.json`.
"""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion.layout import Box, Shape, shifted, slices

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


class _StreamingPlanner(DefaultSavePlanner):
    """Asks for each chunk's data at the moment of writing, so that nothing is held before."""

    def __init__(self, entries: Iterable[Entry], objects: Mapping[str, bytes]):
        super().__init__()
        self._entries: dict[tuple[str, Shape], Entry] = {}
        self._objects = objects
        self._items = [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in objects]
        for entry in entries:
            self._entries[entry.key, entry.global_offset] = entry
            chunk = ChunkStorageMetadata(torch.Size(entry.global_offset), torch.Size(entry.shape))
            data = TensorWriteData(chunk, TensorProperties(dtype=entry.dtype), torch.Size(entry.global_shape))
            index = MetadataIndex(entry.key, torch.Size(entry.global_offset))
            self._items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        self.global_plan, self.metadata = create_default_global_save_plan(all_plans)
        return self.global_plan, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> "Tensor | io.BytesIO":
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(self._objects[write_item.index.fqn])
        offset = write_item.index.offset
        assert offset is not None
        entry = self._entries[write_item.index.fqn, tuple(offset)]
        return entry.produce().reshape(entry.shape)


def write(folder: Path, entries: Iterable[Entry], objects: Mapping[str, bytes], num_threads: int = 2) -> None:
    """Writes a torch_dist checkpoint from this process alone.

    Args:
        folder: made if absent.
        entries: the chunks; their data is asked for one at a time per thread.
        objects: serialised non-tensor entries by key.
        num_threads: files written at the same time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=num_threads)
    # zipfile's CRC takes half of the time of torch.save, and torch.load does not check it.
    compute_crc32 = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        dcp.save({}, storage_writer=writer, planner=_StreamingPlanner(entries, objects), no_dist=True)
    finally:
        torch.serialization.set_crc32_options(compute_crc32)
    (folder / "metadata.json").write_text(json.dumps(_BACKEND))


class TorchDistReader:
    """Reads boxes of the tensors in a torch_dist checkpoint, whatever layout it was saved from.

    Args:
        folder: holds `.metadata` and `metadata.json`.

    Attributes:
        tensors: shape, dtype and chunks of each tensor by key.
        objects: keys of the entries that are not tensors.

    Raises:
        CheckpointError: not a torch_dist checkpoint.
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
        for key, entry in self.tensors.items():
            for chunk in entry.chunks:
                info = metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
                if info is None:
                    raise CheckpointError(
                        f"{folder}: {key} at {list(chunk.offsets)} has no data; the checkpoint is damaged"
                    )
                box = tuple((int(o), int(o) + int(s)) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
                self._chunks[key].append((box, info))

    def read(self, key: str, box: Box) -> "Tensor":
        """The elements of `key` in `box` (with the stacked axes), as a new CPU tensor.

        Raises:
            CheckpointError: the key is absent, or its chunks do not cover the box.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.folder}: no tensor {key}")
        pieces = [(_common(chunk, box), chunk, info) for chunk, info in self._chunks[key]]
        pieces = [piece for piece in pieces if piece[0] is not None]
        if len(pieces) == 1 and pieces[0][0] == box:
            _, chunk, info = pieces[0]
            return self._load(info, key)[slices(shifted(box, chunk))]
        out = torch.empty([stop - start for start, stop in box], dtype=self.tensors[key].properties.dtype)
        num_read = 0
        for common, chunk, info in pieces:
            assert common is not None
            part = self._load(info, key)[slices(shifted(common, chunk))]
            out[slices(shifted(common, box))] = part
            num_read += part.numel()
        if num_read != out.numel():
            raise CheckpointError(
                f"{self.folder}: the chunks of {key} do not cover {box}; the checkpoint is incomplete"
            )
        return out

    def _load(self, info: Any, key: str) -> "Tensor":
        path = self.folder / info.relative_path
        with path.open("rb") as file:
            file.seek(info.offset)
            data = file.read(info.length)
        if len(data) != info.length:
            raise CheckpointError(f"{path}: cut short, {key} needs {info.length} bytes at {info.offset}")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _common(a: Box, b: Box) -> Box | None:
    common = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None
