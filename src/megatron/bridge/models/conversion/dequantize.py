"""Turning a quantised HF folder into a plain one, streamed."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.conversion.hf_files import weight_files, write_shared
from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.hf_pretrained import hub
from megatron.bridge.models.hf_pretrained.artifacts import copy_artifacts, state_quantization
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource, open_weights
from megatron.bridge.models.hf_pretrained.safetensors_format import write_index
from megatron.bridge.transport.progress import Progress
from megatron.bridge.transport.staging import StagingFolder


def dequantize_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    dtype: "torch.dtype | None" = None,
    resources: Resources | None = None,
    show_progress: bool = False,
) -> DequantizedSource:
    """Writes a model's folder anew, with plain weights instead of quantised ones, and a config that says so.

    Tensors that are not quantised keep their bytes, and files keep their names and order. The folder appears when it is
    complete; after a crash, the same call writes what is missing.

    Args:
        source: a folder, or a hub id.
        revision: branch, tag or commit of a hub id.
        dtype: the dtype of weights that were quantised; default: that of `config.json`, or bfloat16 if it states none.

    Raises:
        QuantizationError: nothing is quantised, or something cannot be read; nothing is written.
        CheckpointError: `out` already holds something, or the source is damaged.

    Example: `dequantize_checkpoint("openai/gpt-oss-20b", "hf/gpt-oss", dtype=torch.bfloat16)`
    """
    resources = resources or Resources()
    folder = hub.resolve(source, revision=revision)
    weights = open_weights(folder, dtype)
    if not isinstance(weights, DequantizedSource):
        raise QuantizationError(f"{source}: no tensor is quantised; there is nothing to do. Use the folder as it is.")
    shards = {name: [weights.infos[tensor] for tensor in tensors] for name, tensors in weights.shards.items()}
    shards = {name: infos for name, infos in shards.items() if infos}
    content = [[info.name, info.shape, str(info.dtype)] for infos in shards.values() for info in infos]
    staging = StagingFolder(Path(out), ["dequantize", weights.files.fingerprint(), content], [weights.files])
    with Progress("de-quantising", weights.nbytes, enabled=show_progress) as progress:
        files = weight_files(_Blocks(weights), shards, weights.file_metadata, resources.block_bytes, progress)

        def finish(contents: list[dict[str, object]]) -> None:
            write_index(staging.path, shards, weights.index_metadata)
            copy_artifacts(folder, staging.path)
            if (staging.path / CONFIG_NAME).is_file():
                stated = None if dtype is None else str(dtype).removeprefix("torch.")
                state_quantization(staging.path, None, stated)

        write_shared(staging, files, resources, finish)
    return weights


class _Blocks:
    """The tensors of a quantised source in blocks of rows."""

    def __init__(self, weights: DequantizedSource):
        self._weights = weights

    def blocks(self, name: str, block_bytes: int) -> Iterator["Tensor"]:
        if self._weights.is_stored(name):
            yield self._weights.read(name)
            return
        view, shape = self._weights.view(name), self._weights.infos[name].shape
        row_bytes = prod(shape[1:]) * self._weights.infos[name].dtype.itemsize
        num_rows = max(1, block_bytes // max(row_bytes, 1))
        for start in range(0, shape[0], num_rows):
            yield view[slice(start, min(start + num_rows, shape[0]), 1), *(slice(0, size, 1) for size in shape[1:])]
