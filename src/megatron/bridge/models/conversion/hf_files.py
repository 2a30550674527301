"""The weight files of an HF folder: which tensor goes to which file, and writing them from blocks of rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo, encode_header
from megatron.bridge.models.hf_pretrained.writer import plan_shards
from megatron.bridge.transport import process_groups
from megatron.bridge.transport.boxes import Shape
from megatron.bridge.transport.staging import OutputFile, StagingFolder

if TYPE_CHECKING:
    from torch import Tensor


def hf_tensor_infos(hf_pretrained: Any) -> Mapping[str, TensorInfo] | None:
    """Shapes of the checkpoint's tensors by name, or `None` if there is only a config."""
    return hf_pretrained.state.infos if getattr(hf_pretrained, "has_weights", False) else None


def output_shards(
    shapes: Mapping[str, Shape], dtypes: "Mapping[str, torch.dtype]", tied: Mapping[str, str], hf_pretrained: Any
) -> tuple[dict[str, list[TensorInfo]], dict[str, Any]]:
    """The files of an export and their tensors, and further options for `SafetensorsWriter`.

    Tensors that the source has keep their file and their place in it; new ones, or all if there is no source, are
    distributed as `save_pretrained` does.

    Args:
        shapes, dtypes: of every tensor to write, by name.
        tied: second copies to write, with the name of the tensor that they equal.
    """
    infos = {name: TensorInfo(name, tuple(shape), dtypes[name], "") for name, shape in shapes.items()}
    infos |= {name: infos[same_as]._replace(name=name) for name, same_as in tied.items()}
    if hf_tensor_infos(hf_pretrained) is None:
        return plan_shards(infos.values()), {}
    source = hf_pretrained.state
    shards = {
        filename: [infos.pop(name)._replace(filename=filename) for name in names if name in infos]
        for filename, names in source.shards.items()
    }
    if infos:  # not in the source: appended to its last file
        last = list(shards)[-1]
        shards[last] += [info._replace(filename=last) for info in infos.values()]
    shards = {filename: tensors for filename, tensors in shards.items() if tensors}
    return shards, {"file_metadata": source.file_metadata, "index_metadata": source.index_metadata}


class TensorBlocks(Protocol):
    """Tensors by name, each readable in consecutive blocks of rows."""

    def blocks(self, name: str, block_bytes: int) -> Iterator["Tensor"]:
        """The tensor's rows, in order; blocks that have to be put together have about `block_bytes`."""


def weight_files(
    tensors: TensorBlocks,
    shards: Mapping[str, Sequence[TensorInfo]],
    file_metadata: Mapping[str, dict[str, str]],
    block_bytes: int,
    progress: Any,
) -> list[OutputFile]:
    """The safetensors files of a folder."""
    return [
        OutputFile(name, partial(_write, tensors, infos, file_metadata.get(name), block_bytes, progress))
        for name, infos in shards.items()
    ]


def write_shared(
    staging: StagingFolder,
    files: list[OutputFile],
    resources: Resources,
    finish: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Writes this process's share of the files; the last process has the rest written and publishes."""
    part = resources.part or (process_groups.rank(), process_groups.world_size())
    staging.write_files(files, part, resources.num_threads)
    process_groups.barrier()
    if process_groups.rank() == 0:
        staging.publish(files, finish)


def _write(
    tensors: TensorBlocks,
    infos: Sequence[TensorInfo],
    metadata: dict[str, str] | None,
    block_bytes: int,
    progress: Any,
    stream: Any,
) -> dict[str, Any]:
    header, _ = encode_header(infos, {"format": "pt"} if metadata is None else metadata)
    _write_all(stream, header)
    for info in infos:
        for block in tensors.blocks(info.name, block_bytes):
            _write_all(stream, block.contiguous().view(-1).view(torch.uint8).numpy())
            progress.advance(block.nbytes)
    return {}


def _write_all(stream: Any, data: Any) -> None:
    view = memoryview(data).cast("B")
    while view:  # a raw file may write less than it was given
        view = view[stream.write(view) :]
