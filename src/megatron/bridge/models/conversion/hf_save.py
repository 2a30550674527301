"""The layout of an HF output folder: which tensor goes to which file, in which order."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion.weight_stream import hf_tensor_infos
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo
from megatron.bridge.models.hf_pretrained.writer import plan_shards
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    import torch


def output_shards(
    shapes: Mapping[str, Shape],
    dtypes: "Mapping[str, torch.dtype]",
    tied: Mapping[str, str],
    hf_pretrained: Any,
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
