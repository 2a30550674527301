"""A quantised checkpoint, read as the tensors that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.hf_pretrained.quantization.detection import complete
from megatron.bridge.models.hf_pretrained.quantization.tensor import QuantizedView
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.quantization.detection import Detection
    from megatron.bridge.models.hf_pretrained.source import SafetensorsSource


class DequantizedSource(Mapping[str, "torch.Tensor"]):
    """The weights of a quantised checkpoint: as `SafetensorsSource`, with each quantised tensor in place of its parts.

    Nothing is computed before it is read; `view` gives what computes the slices that are asked for.

    Args:
        stored: the checkpoint as it is.
        found: what is quantised in it, from the headers.
        dtype: of the quantised tensors once they are read; others keep theirs.

    Attributes:
        stored: as given.
        found: as given, with the shapes that are not in headers.
        folder, file_metadata, index_metadata, files: those of the stored checkpoint.
        infos, shards: of the tensors that are meant; a quantised one is in the file of its weight.

    Raises:
        QuantizationError: stored tensors that cannot be read, all of them named.
    """

    def __init__(self, stored: SafetensorsSource, found: Detection, dtype: torch.dtype) -> None:
        import torch

        found = complete(found, lambda name: bytes(stored.read(name).flatten().view(torch.uint8).numpy()))
        found.check(str(stored.folder))
        self.stored, self.found = stored, found
        self.folder, self.files = stored.folder, stored.files
        self.file_metadata, self.index_metadata = stored.file_metadata, stored.index_metadata
        meant = {tensor.parts["weight"]: tensor for tensor in found.tensors.values()}
        hidden = {part for tensor in found.tensors.values() for part in tensor.parts.values()} | found.dropped.keys()
        self.infos: dict[str, TensorInfo] = {}
        self.shards: dict[str, list[str]] = {}
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

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, once they are read."""
        return sum(info.nbytes for info in self.infos.values())

    def is_stored(self, name: str) -> bool:
        """Whether the tensor is stored as it is, so that reading it costs nothing."""
        return name not in self.found.tensors

    def view(self, name: str) -> Any:
        """The tensor, or what computes the slices of it that are asked for.

        Raises:
            CheckpointError: there is no such tensor, or its file was altered since it was opened.
        """
        if self.is_stored(name):
            return self.stored.read(name)
        tensor = self.found.tensors[name]
        parts = {role: self.stored.read(part) for role, part in tensor.parts.items()}
        return QuantizedView(tensor, parts, self.infos[name].dtype)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, whole: computed now if it is quantised."""
        view = self.view(name)
        return view.whole() if isinstance(view, QuantizedView) else view

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.infos:
            raise KeyError(name)
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __repr__(self) -> str:
        return f"DequantizedSource({str(self.folder)!r}, {len(self)} tensors, {len(self.found.tensors)} quantised)"
