"""The safetensors file format: dtype codes, reading headers and writing them.

Format (safetensors 0.8, https://github.com/huggingface/safetensors#format): 8 bytes with the header's length N, an
unsigned little-endian integer; N bytes of JSON, padded at the end with spaces; then the tensors' bytes, with no gaps
between them. The JSON maps each tensor's name to `{"dtype", "shape", "data_offsets": [begin, end]}`, with offsets
counted from the end of the header, and may hold `"__metadata__"`, which maps strings to strings.

The library itself validates files (`safe_open`). Headers are parsed here as well, because `safe_open` gives neither the
order of the metadata nor the name of a tensor with an unknown dtype. They are written here, because the library can
only write a file whose tensors are all in memory.
"""

import fnmatch
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.errors import CheckpointError

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Files in a model's folder that are not its weights: adapters, and second copies in the format of the model's makers.
_OTHER_FILES = ("adapter_*", "consolidated*")

# Codes in the order of the library's `Dtype` enum. `save_file` lays tensors out by descending code, then by name, so
# that the widest dtypes come first and every tensor is aligned to the size of its elements.
_TORCH_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_CODES = {name: code for code, name in _TORCH_NAMES.items()}
_CODE_RANK = {code: rank for rank, code in enumerate(_TORCH_NAMES)}
_HEADER_ALIGNMENT = 8
_MAX_HEADER_NBYTES = 100_000_000  # the library's limit


class StoredTensor(NamedTuple):
    """A tensor as a file's header describes it.

    Attributes:
        code: the code of the dtype, such as "BF16".
        start, end: where the bytes of its data begin and end, counted from the end of the header.
    """

    name: str
    shape: tuple[int, ...]
    code: str
    start: int
    end: int


class TensorInfo(NamedTuple):
    """A tensor of a checkpoint: its name, shape and dtype, and the file in the folder that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: "torch.dtype"
    filename: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def code(self) -> str:
        """The safetensors code of the dtype."""
        return dtype_code(self.dtype)


class Header(NamedTuple):
    """A file's header.

    Attributes:
        infos: the tensors in file order (by data offset).
        metadata: `__metadata__`, in the order in which it is written.
        offsets: for each tensor, the byte of the file at which its data begins.
    """

    infos: list[TensorInfo]
    metadata: dict[str, str]
    offsets: dict[str, int]


def dtype_code(dtype: "torch.dtype") -> str:
    """The safetensors code of a torch dtype: for `torch.bfloat16`, "BF16".

    Raises:
        CheckpointError: the format has no code for it.
    """
    code = _CODES.get(str(dtype).removeprefix("torch."))
    if code is None:
        raise CheckpointError(
            f"{dtype}: safetensors cannot store this dtype. Convert the tensor first; "
            f"known dtypes: {', '.join(_CODES)}."
        )
    return code


def library_order(infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The order in which safetensors' own `save_file` lays these tensors out (see `_TORCH_NAMES`)."""
    return sorted(infos, key=lambda info: (-_CODE_RANK[dtype_code(info.dtype)], info.name))


def parse_header(text: bytes, what: str | Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a header in file order, and its `__metadata__`. Needs neither torch nor the rest of the file.

    Args:
        text: the header's JSON.
        what: the file, to be named in errors.

    Raises:
        CheckpointError: the header is malformed.
    """
    try:
        entries = json.loads(text, object_pairs_hook=unique_keys)
        metadata = entries.pop("__metadata__", {})
        order = sorted(entries, key=lambda name: (entries[name]["data_offsets"], name))
        return [_stored_tensor(name, entries[name]) for name in order], metadata
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{what}: malformed safetensors header ({error!r:.300}). Fetch the file again."
        ) from error


def header_size(prefix: bytes, file_size: int, what: str | Path) -> int:
    """The number of bytes of a header, given the first 8 bytes of its file.

    Raises:
        CheckpointError: this is not a safetensors file, or it was cut short.
    """
    if prefix == b"version ":
        raise CheckpointError(f"{what}: a git-lfs pointer, not the weights. Run `git lfs pull` in its folder.")
    nbytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if len(prefix) < 8 or 8 + nbytes > file_size:
        raise CheckpointError(
            f"{what}: truncated, or not a safetensors file: it has {file_size} bytes, and its header "
            f"alone should end at byte {8 + nbytes}. Fetch the file again."
        )
    if nbytes > _MAX_HEADER_NBYTES:
        raise CheckpointError(
            f"{what}: its header has {nbytes} bytes; no more than {_MAX_HEADER_NBYTES} are allowed. "
            "Fetch the file again."
        )
    return nbytes


def stored_tensors(path: Path) -> tuple[list[StoredTensor], dict[str, str], int]:
    """A file's tensors in the order of their data, its `__metadata__`, and the byte at which the data begins.

    Needs no torch, and reads nothing but the header.

    Raises:
        CheckpointError: this is not a safetensors file, or it was cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        nbytes = header_size(file.read(8), size, path)
        stored, metadata = parse_header(file.read(nbytes), path)
    end = 8 + nbytes + max((tensor.end for tensor in stored), default=0)
    if end > size:
        raise CheckpointError(
            f"{path}: truncated: its header describes {end} bytes, it has {size}. Fetch the file again."
        )
    return stored, metadata, 8 + nbytes


def read_header(path: Path, filename: str) -> Header:
    """Reads a file's header, and nothing else of the file.

    Args:
        path: the file.
        filename: its name within the checkpoint, which each `TensorInfo` records.

    Raises:
        CheckpointError: this is not a safetensors file, it was cut short, or it has a dtype that torch lacks.
    """
    stored, metadata, data_start = stored_tensors(path)
    infos = [_tensor_info(path, filename, tensor) for tensor in stored]
    return Header(infos, metadata, {tensor.name: data_start + tensor.start for tensor in stored})


def read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The `weight_map` of an index, from the names of tensors to those of files in its folder, and its metadata.

    Raises:
        CheckpointError: the index is malformed or empty, or names files outside the folder.
    """
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
        given = index["weight_map"]
        paths = {file: PurePosixPath(file).as_posix() for file in set(given.values())}  # few, for many tensors
        weight_map = {name: paths[file] for name, file in given.items()}
        metadata = {**(index.get("metadata") or {})}
        if not weight_map:
            raise ValueError("its weight_map is empty")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: malformed index ({error!r:.300}): it should be a JSON object with a `weight_map` "
            "from tensor names to file names. Fetch the file again."
        ) from error
    outside = [
        name
        for name in sorted(paths.values())
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]
    if outside:
        raise CheckpointError(
            f"{path}: names files outside the folder: {', '.join(outside)!s:.300}. "
            "The index must name files of its own folder."
        )
    return weight_map, metadata


def files_without_index(folder: Path) -> list[str]:
    """The weight files of a folder that has no index: `model.safetensors`, or else all that can belong to the model."""
    names = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _OTHER_FILES)]


def encode_header(infos: Iterable[TensorInfo], metadata: dict[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file (length and JSON), and each tensor's offset from the beginning of the file.

    The JSON is written as the library writes it: `__metadata__` first, no white space, non-ASCII characters as they
    are, then spaces up to a multiple of 8 bytes.
    """
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offsets: dict[str, int] = {}
    position = 0
    for info in infos:
        offsets[info.name] = position
        entries[info.name] = {
            "dtype": dtype_code(info.dtype),
            "shape": _header_shape(info),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def write_index(
    folder: Path, shards: Mapping[str, Sequence[TensorInfo]], index_metadata: Mapping[str, object] | None
) -> None:
    """Writes the index of several files, or of one if the source had an index. Its `total_size` is computed anew."""
    if len(shards) == 1 and index_metadata is None:
        return
    total = sum(info.nbytes for infos in shards.values() for info in infos)
    weight_map = {info.name: filename for filename, infos in shards.items() for info in infos}
    index = {"metadata": {**(index_metadata or {}), "total_size": total}, "weight_map": weight_map}
    partial = folder / f"{INDEX_NAME}.partial"
    partial.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX_NAME)


def unique_keys[T](pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """An object of a JSON file, for `object_pairs_hook`. If a key occurs twice, readers differ in the value they take.

    Raises:
        ValueError: a key occurs twice.
    """
    entries: dict[str, T] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"repeated key {name!r:.200}")
        entries[name] = value
    return entries


def _stored_tensor(name: str, entry: dict[str, Any]) -> StoredTensor:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"tensor {name:.200}: its shape is not a list of whole numbers from 0 up")
    if type(start) is not int or type(end) is not int or type(entry["dtype"]) is not str:
        raise ValueError(f"tensor {name:.200}: its dtype is not a code, or its data_offsets are not whole numbers")
    return StoredTensor(name, shape, entry["dtype"], start, end)


def _tensor_info(path: Path, filename: str, tensor: StoredTensor) -> TensorInfo:
    import torch

    dtype = getattr(torch, _TORCH_NAMES.get(tensor.code, ""), None)
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {tensor.name} has dtype {tensor.code!r}, which torch {torch.__version__} "
            f"does not have. Known dtypes: {', '.join(_TORCH_NAMES)}."
        )
    shape = tensor.shape
    if tensor.code == "F4":  # the header counts 4-bit elements; torch's dtype holds two of them
        shape = (*shape[:-1], shape[-1] // 2)
    return TensorInfo(tensor.name, shape, dtype, filename)


def _header_shape(info: TensorInfo) -> list[int]:
    if dtype_code(info.dtype) == "F4":
        return [*info.shape[:-1], info.shape[-1] * 2]
    return list(info.shape)
