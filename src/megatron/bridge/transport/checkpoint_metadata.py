"""`.metadata` of a torch_dist checkpoint, read as data.

The file is a pickle of PyTorch's `torch.distributed.checkpoint.metadata.Metadata` (PyTorch 2.6 to 2.15). PyTorch reads
it with `pickle.load`, which runs whatever code the file names. Here the classes that such a file needs are replaced by
records that only keep their state, every other name is refused, and so are opcodes that these files do not have. What
results is then checked field by field.

The standard library's unpickler in Python is used instead of the one in C: its opcodes can be chosen, and a corrupt
memo index makes it grow a dict by one entry where the other fills gigabytes with zeros.
"""

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from megatron.bridge.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

# What the parsers of pickles, zip archives and tensors raise on garbage.
PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)

_DCP = "torch.distributed.checkpoint."
_RECORDS = {
    _DCP + "metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    _DCP + "filesystem": ("_StorageInfo",),
    # megatron-core keeps the plan of a save for the next one.
    _DCP + "planner": ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}
# No sets, no dicts with keys of any kind (hashing nested tuples can take forever), no extensions, no persistent ids.
_OPCODES = (  # noqa: SIM905 (forty lines otherwise)
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD "
    "MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET"
).split()


class StoredChunk(NamedTuple):
    """Where the data of one box of a tensor lies: `length` bytes at `offset` of the file."""

    offsets: Shape
    sizes: Shape
    filename: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint."""

    dtype: "torch.dtype"
    shape: Shape
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class CheckpointContent:
    """What `.metadata` says.

    Attributes:
        tensors: by key.
        objects: by key, the place of each entry that is no tensor (file, offset, length).
    """

    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, tuple[str, int, int]]


def read_metadata(path: Path) -> CheckpointContent:
    """Reads a `.metadata` file without running anything that it names.

    Raises:
        CheckpointError: the file is no pickle of checkpoint metadata, is damaged, or names something else.
    """
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        return _content(metadata)
    except _ForeignNameError as error:
        raise CheckpointError(
            f"{path}: refused: it names {error}, which no checkpoint needs. Loading it elsewhere could run its code."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except PARSER_ERRORS as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error!s:.200}). Fetch it again.") from error


class _ForeignNameError(Exception):
    pass


class _Record:
    """An object of a pickle: its class's name is known, its state is kept, and nothing of it is executed."""

    name: ClassVar[str]
    state: Any = None

    def __init__(self, *args: Any):
        pass


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES
    }

    def __init__(self, file: Any):
        super().__init__(file)
        self._classes: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = self._classes.get((module, name))
        if found is None:
            found = self._classes[module, name] = _stand_in(module, name)
        return found

    def _load_build(self) -> None:
        state = self.stack.pop()
        record = self.stack[-1]
        if not isinstance(record, _Record):
            raise pickle.UnpicklingError("state for something that has none")
        record.state = state

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise pickle.UnpicklingError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | _Record):
                raise pickle.UnpicklingError(f"a {type(key).__name__} as key")
            target[key] = value

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems


def _stand_in(module: str, name: str) -> Any:
    import torch

    if name in _RECORDS.get(module, ()):
        return type(name, (_Record,), {"name": name})
    if (module, name) == ("torch", "Size"):
        return tuple
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    raise _ForeignNameError(f"{module!s:.100}.{name!s:.100}")


def _content(metadata: Any) -> CheckpointContent:
    fields = _fields(metadata, "Metadata")
    places: dict[tuple[str, Shape | None], tuple[str, int, int]] = {}
    for index, info in _dict(fields["storage_data"]).items():
        at = _fields(index, "MetadataIndex")
        offset = None if at.get("offset") is None else _shape(at["offset"])
        places[_text(at["fqn"]), offset] = _place(info)
    tensors, objects = {}, {}
    for key, entry in _dict(fields["state_dict_metadata"]).items():
        if isinstance(entry, _Record) and entry.name == "BytesStorageMetadata":
            objects[_text(key)] = _found(places, key, None)
        else:
            tensors[_text(key)] = _tensor(key, _fields(entry, "TensorStorageMetadata"), places)
    return CheckpointContent(tensors, objects)


def _tensor(key: str, fields: dict[str, Any], places: Mapping[Any, tuple[str, int, int]]) -> StoredTensor:
    import torch

    properties, shape = fields["properties"], _shape(fields["size"])
    if not isinstance(properties, _Record) or not isinstance(properties.state, tuple):
        raise ValueError(f"{key:.200} has no properties")
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key:.200} has no dtype")
    chunks = []
    for chunk in fields["chunks"]:
        box = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _shape(box["offsets"]), _shape(box["sizes"])
        if any(start + size > whole for start, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"a chunk of {key:.200} at {list(offsets)} reaches beyond its shape {list(shape)}")
        chunks.append(StoredChunk(offsets, sizes, *_found(places, key, offsets)))
    return StoredTensor(dtype, shape, tuple(chunks))


def _found(places: Mapping[Any, tuple[str, int, int]], key: str, offset: Shape | None) -> tuple[str, int, int]:
    if (key, offset) not in places:
        raise ValueError(f"{key:.200} at {offset} has no data")
    return places[key, offset]


def _place(info: Any) -> tuple[str, int, int]:
    fields = _fields(info, "_StorageInfo")
    if fields.get("transform_descriptors"):
        raise ValueError("its data is compressed (transform_descriptors), which is not supported")
    offset, length = _shape((fields["offset"], fields["length"]))
    return _text(fields["relative_path"]), offset, length


def _fields(record: Any, name: str) -> dict[str, Any]:
    if not isinstance(record, _Record) or record.name != name:
        raise ValueError(f"a {type(record).__name__} where a {name} is expected")
    return _dict(record.state)


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise ValueError(f"a {type(value).__name__} where a dict is expected")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a {type(value).__name__} where a name is expected")
    return value


def _shape(value: Any) -> Shape:
    """A tuple of sizes or offsets, each of at most 63 bits."""
    if type(value) is not tuple or len(value) > 64 or not all(type(x) is int and 0 <= x < 1 << 63 for x in value):
        raise ValueError("sizes and offsets must be whole numbers from 0 up")
    return value
