"""Writing an HF folder from tensors that come in blocks of rows: what export and de-quantisation share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo, encode_header
from megatron.bridge.transport import process_groups
from megatron.bridge.transport.staging import OutputFile, StagingFolder

if TYPE_CHECKING:
    from torch import Tensor


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
