"""Reading the safetensors weights of a Hugging Face model folder."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.other_folders import adapter, what_it_holds
from megatron.bridge.models.hf_pretrained.safetensors_format import (
    INDEX_NAME,
    SINGLE_NAME,
    TensorInfo,
    files_without_index,
    read_header,
    read_index,
)
from megatron.bridge.transport.source_files import SourceFiles, is_file, tensor_at

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.quantization.tensor import QuantizedView

__all__ = ["SafetensorsSource", "TensorInfo", "WeightSource"]


class WeightSource(Mapping[str, "torch.Tensor"]):
    """The weights of a folder, by name: what a conversion reads.

    Attributes:
        folder: the folder.
        infos: each tensor's shape, dtype and file, known without reading it; ordered by file, then by data offset.
        shards: the names of each file's tensors, in the order of their data.
        file_metadata: each file's `__metadata__`, such as `{"format": "pt"}`; empty if it has none.
        index_metadata: the index's "metadata", or None if there is no index.
        files: the files, which must stay as they are while they are read.
    """

    folder: Path
    infos: dict[str, TensorInfo]
    shards: dict[str, list[str]]
    file_metadata: dict[str, dict[str, str]]
    index_metadata: dict[str, Any] | None
    files: SourceFiles

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(info.nbytes for info in self.infos.values())

    def is_stored(self, name: str) -> bool:
        """Whether the tensor is stored as it is, so that nothing is computed when part of it is read."""
        return True

    @abstractmethod
    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor, on the CPU.

        Raises:
            CheckpointError: there is no such tensor, or its file was altered since it was opened.
        """

    def view(self, name: str) -> "torch.Tensor | QuantizedView":
        """The tensor, or something with its shape and dtype that gives a tensor when it is sliced."""
        return self.read(name)

    def __getitem__(self, name: str) -> "torch.Tensor":
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
        return f"{type(self).__name__}({str(self.folder)!r}, {len(self)} tensors, {self.nbytes} bytes)"


class SafetensorsSource(WeightSource):
    """The stored tensors of a folder, as a read-only mapping from names to CPU tensors.

    The files are those of `model.safetensors.index.json`; without an index, `model.safetensors`; without that, every
    `*.safetensors` in the folder but adapters and `consolidated*` files. The constructor reads the headers and checks
    them against the index and the sizes of the files. A tensor is a view of its file's memory map, so reading one costs
    nothing until its bytes are used. The map is private: writing into a tensor never changes the file, but it changes
    what later reads of it return.

    `SafetensorsSource(folder)["lm_head.weight"][:10]` touches the bytes of ten rows.

    Raises:
        CheckpointError: there are no safetensors weights, or an adapter beside them; a file is absent, cut short or
            malformed; torch does not know a tensor's dtype; or the index and the files disagree about which tensor is
            where.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if found := adapter(self.folder):
            raise CheckpointError(f"{self.folder}: {found}")
        self.index_metadata = None
        weight_map: dict[str, str] | None = None
        if (self.folder / INDEX_NAME).is_file():
            weight_map, self.index_metadata = _index_of(self.folder)
            filenames = sorted(set(weight_map.values()))
        else:
            filenames = _files_without_index(self.folder)
        self.infos, self.shards, self.file_metadata = {}, {}, {}
        self.files = SourceFiles()
        self._offsets: dict[str, int] = {}
        repeated: list[str] = []
        for filename in filenames:
            check_inside(self.folder, self.folder / filename)
            self.files.add(self.folder / filename)
            header = read_header(self.folder / filename, filename)
            _validate(self.folder / filename)
            self._offsets |= header.offsets
            self.shards[filename] = [info.name for info in header.infos]
            self.file_metadata[filename] = header.metadata
            for info in header.infos:
                if info.name in self.infos:
                    repeated.append(f"{info.name} is in both {self.infos[info.name].filename} and {filename}")
                self.infos[info.name] = info
        if repeated:
            raise CheckpointError(
                f"{self.folder}: the same tensor in two files: {'; '.join(repeated)}. "
                "Remove the files that do not belong to the model."
            )
        if weight_map is not None:
            _check_index(self.folder, weight_map, self.infos)

    def read(self, name: str) -> "torch.Tensor":
        """The tensor, on CPU, as a view of the memory-mapped file.

        Raises:
            CheckpointError: there is no such tensor, or its file was altered since it was opened.
        """
        if name not in self.infos:
            raise CheckpointError(f"{self.folder}: no tensor {name} among its {len(self.infos)} tensors.")
        info = self.infos[name]
        path = self.folder / info.filename
        self.files.check(path)
        return tensor_at(self.files.map(path), self._offsets[name], info.shape, info.dtype)


def has_weights(folder: str | Path) -> bool:
    """Whether the folder itself holds a safetensors file or an index, complete or not."""
    folder = Path(folder)
    return (folder / INDEX_NAME).is_file() or bool(files_without_index(folder))


def indexed_names(folder: str | Path) -> Collection[str] | None:
    """The names of the tensors in the folder's index, whether its files are there or not; `None` without an index.

    Raises:
        CheckpointError: the index is malformed.
    """
    path = Path(folder) / INDEX_NAME
    return read_index(path)[0] if path.is_file() else None


def check_inside(folder: Path, path: Path) -> None:
    """Makes sure that a file of a model folder is not a link to something else.

    A link may lead into the folder, or into the blobs of a model in the Hugging Face cache: those of the model that the
    folder is a snapshot of, or those to which `huggingface-cli download --local-dir` linked large files until 2024.

    Raises:
        CheckpointError: the link leads elsewhere, so that a file that is not the model's could be published.
    """
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent.resolve() / "blobs")
    target = path.resolve()
    if target.parent.name == "blobs" and target.parent.parent.name.startswith("models--"):
        roots.append(target.parent)
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{path}: a link that leads outside the model's folder, to {target}. Replace it by the "
            "file itself, or remove it."
        )


def _validate(path: Path) -> None:
    """Lets the library check a file's header. (With torch, it would reserve memory for the whole file.)"""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {error!s:.300}. Fetch the file again.") from error


def _index_of(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    path = folder / INDEX_NAME
    weight_map, metadata = read_index(path)
    filenames = sorted(set(weight_map.values()))
    absent = [name for name in filenames if not is_file(folder / name)]
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} of {len(filenames)} files are absent: {', '.join(absent)!s:.2000}. Fetch them"
            + (f", or remove the index if {SINGLE_NAME} is the model." if (folder / SINGLE_NAME).is_file() else ".")
        )
    if (folder / SINGLE_NAME).is_file() and SINGLE_NAME not in filenames:
        raise CheckpointError(
            f"{folder}: holds both {SINGLE_NAME} and an index of other files ({INDEX_NAME}), two "
            f"sets of weights, of which transformers reads {SINGLE_NAME}. Remove the one that is not the model."
        )
    return weight_map, metadata


def _files_without_index(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder.")
    filenames = files_without_index(folder)
    if not filenames:
        expected = f"no weights: expected {INDEX_NAME}, {SINGLE_NAME} or other *.safetensors files."
        raise CheckpointError(f"{folder}: {what_it_holds(folder) or expected}")
    return filenames


def _check_index(folder: Path, weight_map: dict[str, str], infos: dict[str, TensorInfo]) -> None:
    problems = [
        f"{name} is not in {filename}" + (f" but in {infos[name].filename}" if name in infos else "")
        for name, filename in weight_map.items()
        if name not in infos or infos[name].filename != filename
    ]
    problems += [
        f"{name} of {info.filename} is not in the index" for name, info in infos.items() if name not in weight_map
    ]
    if problems:
        raise CheckpointError(
            f"{folder / INDEX_NAME}: the index and the files disagree: {'; '.join(problems)}. Fetch the folder again; "
            "or remove the index, if the *.safetensors files of the folder are the model."
        )
