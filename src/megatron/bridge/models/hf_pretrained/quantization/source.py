"""A quantised checkpoint, read as the tensors that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, JsonObject, quantization_config, read_config_json
from megatron.bridge.models.hf_pretrained.quantization.detection import Detection, complete, detect
from megatron.bridge.models.hf_pretrained.quantization.tensor import QuantizedView
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, WeightSource

if TYPE_CHECKING:
    import torch


class DequantizedSource(WeightSource):
    """The weights of a quantised checkpoint: stored tensors, with each quantised tensor in place of its parts.

    Nothing is computed before it is read; `view` gives something that computes the slices that are asked for.

    Args:
        stored: the checkpoint as it is.
        found: what is quantised in it, according to the headers.
        dtype: the dtype that quantised tensors have when they are read; others keep theirs.
        is_strict: whether it is an error if something cannot be read; otherwise it is left as it is stored.

    Attributes:
        stored: the argument.
        found: the argument, completed by the shapes that are not in headers.
        infos, shards: those of the tensors that are meant; a quantised one belongs to the file that holds its weight.

    Raises:
        QuantizationError: stored tensors cannot be read; the message names all of them.
    """

    def __init__(self, stored: SafetensorsSource, found: Detection, dtype: torch.dtype, is_strict: bool = True) -> None:
        import torch

        found = complete(found, lambda name: bytes(stored.read(name).flatten().view(torch.uint8).numpy()))
        if is_strict:
            found.check(str(stored.folder))
        self.stored, self.found = stored, found
        self.folder, self.files = stored.folder, stored.files
        self.file_metadata, self.index_metadata = stored.file_metadata, stored.index_metadata
        meant = {tensor.parts["weight"]: tensor for tensor in found.tensors.values()}
        hidden = {part for tensor in found.tensors.values() for part in tensor.parts.values()} | found.dropped.keys()
        self.infos, self.shards = {}, {}
        for filename, names in stored.shards.items():
            self.shards[filename] = []
            for name in names:
                if name in meant:
                    info = TensorInfo(meant[name].name, meant[name].shape, dtype, filename)
                elif name in hidden:
                    continue
                else:
                    info = stored.infos[name]
                self.infos[info.name] = info
                self.shards[filename].append(info.name)

    def is_stored(self, name: str) -> bool:
        """See `WeightSource`. A quantised tensor is computed."""
        return name not in self.found.tensors

    def view(self, name: str) -> torch.Tensor | QuantizedView:
        """The tensor, or something that computes the slices of it that are asked for."""
        if self.is_stored(name):
            return self.stored.read(name)
        tensor = self.found.tensors[name]
        parts = {role: self.stored.read(part) for role, part in tensor.parts.items()}
        return QuantizedView(name, tensor, parts, self.infos[name].dtype)

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, computed now if it is quantised."""
        view = self.view(name)
        return view.whole() if isinstance(view, QuantizedView) else view


def open_weights(folder: str | Path, dtype: torch.dtype | None = None, is_strict: bool = True) -> WeightSource:
    """The weights of a model's folder as numbers, whatever they are stored as.

    What is quantised is found by the tensors themselves; `config.json` gives no more than block sizes.

    `open_weights(folder).read(name)` computes a quantised tensor; `.view(name)[index]` computes only part of it.

    Args:
        dtype: the dtype that quantised tensors are read in; default: that of `config.json`, or bfloat16 if it has none.
        is_strict: whether it is an error if something cannot be read; otherwise it is left as it is stored.

    Raises:
        CheckpointError: as for `SafetensorsSource`.
        QuantizationError: quantised numbers cannot be read.
    """
    stored = SafetensorsSource(folder)
    found = detect_in(stored)
    is_plain = not (found.tensors or found.dropped or found.problems)
    if is_plain:
        return stored
    return DequantizedSource(stored, found, dtype or _dtype(_config(stored.folder)), is_strict)


def detect_in(stored: SafetensorsSource) -> Detection:
    """What is quantised among a folder's stored tensors, according to them and to its `config.json`."""
    return detect(stored.infos, quantization_config(_config(stored.folder)))


def _config(folder: Path) -> JsonObject:
    return read_config_json(folder) if (folder / CONFIG_NAME).is_file() else {}


def _dtype(values: JsonObject) -> torch.dtype:
    import torch

    levels = (values, *(value for value in values.values() if isinstance(value, dict)))
    names = (level.get(name) for level in levels for name in ("dtype", "torch_dtype"))
    dtype = getattr(torch, next((name for name in names if isinstance(name, str)), "bfloat16"), None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.bfloat16
