"""The weight files of an HF folder: which tensor goes into which file, and writing them in blocks of rows."""

from collections import Counter
from collections.abc import Buffer, Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import BinaryIO, Protocol, TypedDict

import torch
from torch import Tensor

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.config import JsonObject
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo, encode_header
from megatron.bridge.models.hf_pretrained.writer import plan_shards
from megatron.bridge.transport import process_groups
from megatron.bridge.transport.boxes import Shape
from megatron.bridge.transport.progress import Progress
from megatron.bridge.transport.staging import OutputFile, StagingFolder


class FolderMetadata(TypedDict, total=False):
    """The metadata of a folder's weight files, as `SafetensorsWriter` takes it; empty for its defaults."""

    file_metadata: dict[str, dict[str, str]]
    index_metadata: "JsonObject | None"


def hf_tensor_infos(hf_pretrained: "HFModel") -> Mapping[str, TensorInfo] | None:
    """The shapes, dtypes and files of a checkpoint's tensors, by name; `None` if there is only a config."""
    return hf_pretrained.state.infos if getattr(hf_pretrained, "has_weights", False) else None


def main_dtype(shapes: Mapping[str, Shape], dtypes: "Mapping[str, torch.dtype]") -> "torch.dtype | None":
    """The dtype that most elements of floating-point tensors have: the one to state in `config.json`."""
    num_elements: Counter[torch.dtype] = Counter()
    for name, shape in shapes.items():
        if dtypes[name].is_floating_point and dtypes[name].itemsize > 1:
            num_elements[dtypes[name]] += prod(shape)
    return num_elements.most_common(1)[0][0] if num_elements else None


def needed_tensor_infos(hf_pretrained: "HFModel") -> Mapping[str, TensorInfo]:
    """Like `hf_tensor_infos`, for a conversion that needs weights.

    Raises:
        CheckpointError: there are none; says what there is instead.
    """
    infos = hf_tensor_infos(hf_pretrained)
    if infos is None:
        why = hf_pretrained.why_no_weights() if isinstance(hf_pretrained, PreTrainedCausalLM) else ""
        raise CheckpointError(f"{hf_pretrained.model_name_or_path}: {why or 'there are no weights, only a config.'}")
    return infos


def output_shards(
    shapes: Mapping[str, Shape], dtypes: "Mapping[str, torch.dtype]", tied: Mapping[str, str], hf_pretrained: "HFModel"
) -> tuple[dict[str, list[TensorInfo]], FolderMetadata]:
    """The files of an export with their tensors, and the metadata of the source's files.

    Tensors that the source has keep their file and their place in it, and new ones follow in its last file. Without a
    source, tensors are distributed as `save_pretrained` does.

    Args:
        shapes, dtypes: those of each tensor to write, by name.
        tied: the second copies to write, each with the name of the tensor that it equals.
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
    if infos:  # new ones
        last = list(shards)[-1]
        shards[last] += [info._replace(filename=last) for info in infos.values()]
    shards = {filename: tensors for filename, tensors in shards.items() if tensors}
    return shards, {"file_metadata": source.file_metadata, "index_metadata": source.index_metadata}


class TensorBlocks(Protocol):
    """Tensors by name, each of which can be read in consecutive blocks of rows."""

    def blocks(self, name: str, block_bytes: int) -> Iterator["Tensor"]:
        """The tensor's rows, in order. Blocks that must be put together have about `block_bytes` bytes."""


def weight_files(
    tensors: TensorBlocks,
    shards: Mapping[str, Sequence[TensorInfo]],
    file_metadata: Mapping[str, dict[str, str]],
    block_bytes: int,
    progress: "Progress",
) -> list[OutputFile]:
    """The safetensors files of a folder, to be written by a `StagingFolder`."""
    return [
        OutputFile(name, partial(_write, tensors, infos, file_metadata.get(name), block_bytes, progress))
        for name, infos in shards.items()
    ]


def write_shared(
    staging: StagingFolder,
    files: list[OutputFile],
    resources: Resources,
    finish: Callable[[list[dict[str, object]]], None],
) -> None:
    """Writes this process's share of the files. Rank 0 then has `finish` write the rest, and publishes the folder."""
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
    progress: "Progress",
    stream: BinaryIO,
) -> dict[str, object]:
    header, _ = encode_header(infos, {"format": "pt"} if metadata is None else metadata)
    _write_all(stream, header)
    for info in infos:
        for block in tensors.blocks(info.name, block_bytes):
            _write_all(stream, block.contiguous().view(-1).view(torch.uint8).numpy())
            progress.advance(block.nbytes)
    return {}


def _write_all(stream: BinaryIO, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:  # a raw file may take less than it is given
        view = view[stream.write(view) :]
