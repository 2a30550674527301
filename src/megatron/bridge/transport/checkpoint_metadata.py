"""The `.metadata` of a torch_dist checkpoint, read as data.

The file is a pickle of PyTorch's `torch.distributed.checkpoint.metadata.Metadata` (PyTorch 2.6 to 2.15). PyTorch reads
it with `pickle.load`, which runs whatever code the file names. Here the classes that such a file needs are replaced by
records that only keep their state; every other name is refused, and so are opcodes that these files do not contain.
The result is then checked field by field.

The standard library's unpickler in Python is used instead of the one in C, because its opcodes can be chosen, and
because a corrupt memo index only adds an entry to a dict, whereas it makes the other fill gigabytes with zeros.
"""

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple

from megatron.bridge.errors import CheckpointError
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    import torch

# What the parsers of pickles, zip archives and tensors raise when they are given garbage.
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
    # megatron-core keeps the plan of one save for the next.
    _DCP + "planner": ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}
# No sets, no dicts with arbitrary keys (hashing nested tuples can take forever), no extensions, no persistent ids.
_OPCODES = (  # noqa: SIM905 (forty lines otherwise)
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD "
    "MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET"
).split()


class StoredChunk(NamedTuple):
    """Where the data of one box of a tensor lies: `length` bytes from byte `offset` of the file on."""

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
        tensors: the tensors, by key.
        objects: for each entry that is not a tensor, by key, where it lies: file, offset and length in bytes.
    """

    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, "Place"]


def read_metadata(path: Path) -> CheckpointContent:
    """Reads a `.metadata` file without running anything that it names.

    Raises:
        CheckpointError: the file is not a pickle of checkpoint metadata, is damaged, or names something else.
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
    """An object of a pickle: the name of its class is known, its state is kept, and none of it is executed."""

    name: ClassVar[str]
    state: object = None

    def __init__(self, *args: object) -> None:
        pass


class _Unpickler(pickle._Unpickler):
    stack: list[object]
    pop_mark: Callable[[], list[object]]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._classes: dict[tuple[str, str], object] = {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._classes:
            self._classes[module, name] = _stand_in(module, name)
        return self._classes[module, name]

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

    def _set_items(self, items: list[object]) -> None:
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


def _stand_in(module: str, name: str) -> object:
    """What stands for a class, or for another global, that a pickle names."""
    import torch

    if name in _RECORDS.get(module, ()):
        return type(name, (_Record,), {"name": name})
    if (module, name) == ("torch", "Size"):
        return tuple
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    raise _ForeignNameError(f"{module!s:.100}.{name!s:.100}")


Place = tuple[str, int, int]  # file, offset and length in bytes
# By key and, for tensors, the offsets of the chunk.
_Places = dict[tuple[str, Shape | None], Place]


def _content(metadata: object) -> CheckpointContent:
    fields = _fields(metadata, "Metadata")
    places: _Places = {}
    for index, info in _dict(fields["storage_data"]).items():
        at = _fields(index, "MetadataIndex")
        offset = None if at.get("offset") is None else _shape(at["offset"])
        places[_text(at["fqn"]), offset] = _place(info)
    tensors, objects = {}, {}
    for name, entry in _dict(fields["state_dict_metadata"]).items():
        key = _text(name)
        if isinstance(entry, _Record) and entry.name == "BytesStorageMetadata":
            objects[key] = _place_of(places, key, None)
        else:
            tensors[key] = _tensor(key, _fields(entry, "TensorStorageMetadata"), places)
    return CheckpointContent(tensors, objects)


def _tensor(key: str, fields: dict[object, object], places: _Places) -> StoredTensor:
    import torch

    properties, shape = fields["properties"], _shape(fields["size"])
    if not isinstance(properties, _Record) or not isinstance(properties.state, tuple):
        raise ValueError(f"{key:.200} has no properties")
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key:.200} has no dtype")
    listed = fields["chunks"]
    if not isinstance(listed, list | tuple):
        raise ValueError(f"{key:.200} has no chunks")
    chunks = []
    for chunk in listed:
        box = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _shape(box["offsets"]), _shape(box["sizes"])
        if any(start + size > whole for start, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"a chunk of {key:.200} at {list(offsets)} reaches beyond its shape {list(shape)}")
        chunks.append(StoredChunk(offsets, sizes, *_place_of(places, key, offsets)))
    return StoredTensor(dtype, shape, tuple(chunks))


def _place_of(places: _Places, key: str, offset: Shape | None) -> Place:
    if (key, offset) not in places:
        raise ValueError(f"{key:.200} at {offset} has no data")
    return places[key, offset]


def _place(info: object) -> Place:
    fields = _fields(info, "_StorageInfo")
    if fields.get("transform_descriptors"):
        raise ValueError("its data is compressed (transform_descriptors), which is not supported")
    offset, length = _shape((fields["offset"], fields["length"]))
    return _text(fields["relative_path"]), offset, length


def _fields(record: object, name: str) -> dict[object, object]:
    """The state of a record of the class `name`."""
    if not isinstance(record, _Record) or record.name != name:
        raise ValueError(f"a {type(record).__name__} where a {name} is expected")
    return _dict(record.state)


def _dict(value: object) -> dict[object, object]:
    if type(value) is not dict:
        raise ValueError(f"a {type(value).__name__} where a dict is expected")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError(f"a {type(value).__name__} where a name is expected")
    return value


def _shape(value: object) -> Shape:
    """Sizes or offsets: a tuple of whole numbers of at most 63 bits each."""
    if type(value) is not tuple or len(value) > 64 or not all(type(x) is int and 0 <= x < 1 << 63 for x in value):
        raise ValueError("sizes and offsets must be whole numbers from 0 up")
    return value
