"""torch_dist checkpoints that lie: `.metadata` is a pickle, and the tensors lie in zip archives with pickles in them.

PyTorch's own classes make the well-formed pickles with wrong content; what comes out is compared with the original.
"""

import io
import json
import multiprocessing
import os
import pickle
import pickletools
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex

from megatron.bridge import AutoBridge
from megatron.bridge.transport.torch_dist import TorchDistReader
from megatron.bridge.verification import verify_checkpoints
from megatron.bridge.verification.bits import same_bits
from tests.ranks import run_ranks
from tests.shares import shares
from tests.tiny_models import TinyModel
from tests.unit_tests.hostile.attempts import attempt, must_fail
from tests.unit_tests.hostile.test_hostile_safetensors import mutate

TINY = TinyModel("tiny", "LlamaForCausalLM", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48})
QKV = "decoder.layers.self_attention.linear_qkv.weight"
NORM = "decoder.final_layernorm.weight"
FUZZ = settings(derandomize=True, max_examples=250, deadline=None, database=None)


def _save_live(folder: Path, out: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = 2
    bridge.save_megatron_model(provider.provide_distributed_model(wrap_with_ddp=False), out)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `hf`, its import `imported`, and `saved` as megatron-core saves it from two ranks."""
    folder = tmp_path_factory.mktemp("originals")
    TINY.save(folder / "hf")
    AutoBridge.import_ckpt(folder / "hf", folder / "imported")
    run_ranks(_save_live, 2, folder / "hf", folder / "saved", tp=2)
    return folder


@pytest.fixture(params=["imported", "saved"])
def folder(request: pytest.FixtureRequest, originals: Path, tmp_path: Path) -> Path:
    """A copy of the iteration's folder, to be damaged."""
    return Path(shutil.copytree(originals / request.param / "iter_0000000", tmp_path / request.param / "iter_0000000"))


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(folder)
    wholes = {key: tuple((0, size) for size in tensor.shape) for key, tensor in reader.tensors.items()}
    return {key: reader.read(key, box).clone() for key, box in wholes.items()}


def is_refused(folder: Path, culprit: str | Path) -> bool:
    """Whether comparing a damaged checkpoint with the original fails or finds keys, shapes or dtypes that differ."""
    original = Path(str(folder).replace(str(folder.parent.parent), str(ORIGINALS[0])))
    found: list[Any] = []
    error = attempt(lambda: found.append(verify_checkpoints(original, folder)), culprit)
    if error is None:  # then no tensor may have other values under its name
        assert all(difference.kind != "values" for difference in found[0].differences), found[0].differences
    return error is not None or not found[0].equal


ORIGINALS: list[Path] = []


@pytest.fixture(autouse=True)
def _originals(originals: Path) -> None:
    ORIGINALS[:] = [originals]


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _calls(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    text = command.encode()
    metadata = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    return {
        "os.system": pickle.dumps(Call(os.system, command)),
        "os.system, protocol 0": pickle.dumps(Call(os.system, command), 0),
        "os.system, protocol 2": pickle.dumps(Call(os.system, command), 2),
        "eval": pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')")),
        "exec": pickle.dumps(Call(exec, f"open({str(marker)!r}, 'w')")),
        "open": pickle.dumps(Call(open, str(marker), "w")),
        "mkdir": pickle.dumps(Call(os.mkdir, str(marker))),
        "import": pickle.dumps(Call(__import__, "antigravity")),
        "getattr": pickle.dumps(Call(getattr, os, "system")) if False else b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.",
        "inst": b"(V" + text + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nV" + text + b"\no.",
        "newobj": b"\x80\x02cos\nsystem\nV" + text + b"\n\x85\x81.",
        "build": b"\x80\x02" + metadata + b")\x81}V__setstate__\ncos\nsystem\nsbV" + text + b"\nb.",
        "state of a class": b"\x80\x02" + metadata + b"N}V__reduce__\ncos\nsystem\ns\x86b.",
        "attribute of a class": b"\x80\x04\x8c\x28torch.distributed.checkpoint.metadata\x8c\x09os.system\x93.",
        "attribute of an allowed module": b"ctorch.distributed.checkpoint.metadata\nos\n.",
        "torch.load": b"ctorch\nload\n(V" + str(marker).encode() + b"\ntR.",
        "torch.hub": b"ctorch.hub\nload\n(Va\nVb\ntR.",
        "torch attribute": b"ctorch\nserialization\n.",
        "numpy": b"cnumpy\nload\n(V" + str(marker).encode() + b"\ntR.",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\nV" + text + b"\ntR.",
        "operator": b"coperator\nattrgetter\n(Vsystem\ntR.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR.",
        "subprocess": b"csubprocess\nPopen\n(V" + text + b"\ntR.",
        "persistent id": b"Vx\nQ.",
        "extension": b"\x80\x02\x82\x01.",
        "nested in the metadata": pickle.dumps({"state_dict_metadata": Call(os.system, command)}),
        "as a key": b"\x80\x02}cos\nsystem\nV" + text + b"\n\x85RNs.",
        "allowed class as a function": b"\x80\x02" + metadata + b"V" + text + b"\n\x85R.",
        "dtype as a function": b"\x80\x02ctorch\nfloat32\nV" + text + b"\n\x85R.",
    }


@pytest.mark.parametrize("name", _calls(Path("x")))
def test_pickles_that_call_something(name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (folder / ".metadata").write_bytes(_calls(marker)[name])
    error = attempt(lambda: read_all(folder), folder / ".metadata")
    assert error is not None
    must_fail(lambda: verify_checkpoints(folder, ORIGINALS[0] / "hf"), folder / ".metadata")
    assert not marker.exists()


def test_the_calls_would_work(tmp_path: Path) -> None:
    """Loaded with `pickle`, as PyTorch does, the marker appears: the cases above are real."""
    executed = []
    for name, content in _calls(tmp_path / "executed").items():
        child = multiprocessing.get_context("fork").Process(target=_load_and_use, args=(content,))
        child.start()
        child.join()
        if (tmp_path / "executed").exists():
            executed.append(name)
            (tmp_path / "executed").rename(tmp_path / f"executed {len(executed)}")
    assert {"os.system", "eval", "exec", "inst", "build", "nested in the metadata", "as a key"} <= set(executed)


def _load_and_use(content: bytes) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (closed with the process)
    pickle.loads(content)


def test_a_call_inside_real_metadata(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for place in ("state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version", "all_local_plans"):
        metadata = dcp.FileSystemReader(ORIGINALS[0] / folder.parent.name / folder.name).read_metadata()
        setattr(metadata, place, Call(os.system, f"touch {marker}"))
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        must_fail(lambda: read_all(folder), folder / ".metadata")
    assert not marker.exists()


# `.metadata`: bombs and garbage


def _bombs() -> dict[str, bytes]:
    tuples = b"\x80\x04)" + b"\x940\x68\x00\x68\x00\x86"
    doubled = b"\x80\x04K\x01" + b"".join(
        b"\x94h" + bytes([index]) + b"h" + bytes([index]) + b"\x86" for index in range(60)
    )
    return {
        "empty": b"",
        "stop": b".",
        "None": pickle.dumps(None),
        "dict": pickle.dumps({}),
        "list": pickle.dumps([1, 2]),
        "text": b"not a pickle",
        "zeros": bytes(1000),
        "json": b'{"state_dict_metadata": {}}',
        "memo index of 2 ** 31": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "memo index of 2 ** 32": b"\x80\x02Nr\xff\xff\xff\xff.",
        "bytes of 2 ** 60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
        "text of 2 ** 60": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
        "bytearray of 2 ** 40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        "frame of 2 ** 60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
        "doubled tuples": doubled + b".",
        "doubled tuples as a key": b"\x80\x04}" + doubled[2:] + b"Ns.",
        "doubled tuples in a set": b"\x80\x04\x8f(" + doubled[2:] + b"\x90.",
        "doubled tuples as a dict": b"\x80\x04(" + doubled[2:] + b"Nd.",
        "deep tuples": b"\x80\x04N" + b"\x85" * 200_000 + b".",
        "deep lists": b"\x80\x04" + b"](" * 100_000 + b"N" + b"e" * 100_000 + b".",
        "stack underflow": b"\x80\x040000.",
        "no mark": b"\x80\x04t.",
        "protocol 255": b"\x80\xffN.",
        "number of 100000 digits": b"I" + b"9" * 100_000 + b"\n.",
        "large number": b"\x80\x02\x8b" + struct.pack("<i", 10_000_000) + b"\xff" * 10_000_000 + b".",
        "unused": tuples + b".",
    }


@pytest.mark.parametrize("name", _bombs())
def test_pickles_that_explode(name: str, folder: Path) -> None:
    (folder / ".metadata").write_bytes(_bombs()[name])
    must_fail(lambda: read_all(folder), folder / ".metadata")


def test_truncated_metadata(folder: Path) -> None:
    content = (folder / ".metadata").read_bytes()
    for size in range(0, len(content), 401):
        (folder / ".metadata").write_bytes(content[:size])
        must_fail(lambda: read_all(folder), folder / ".metadata")


# `.metadata`: well-formed, with content that is wrong


def _first(metadata: Any, key: str) -> Any:
    chunk = metadata.state_dict_metadata[key].chunks[0]
    return metadata.storage_data[MetadataIndex(key, chunk.offsets)]


def _change_place(**values: Any) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for name, value in values.items():
            object.__setattr__(_first(metadata, NORM), name, value)

    return change


def _change_chunk(offsets: Any, sizes: Any) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        tensor = metadata.state_dict_metadata[QKV]
        place = metadata.storage_data.pop(MetadataIndex(QKV, tensor.chunks[0].offsets))
        tensor.chunks[0] = ChunkStorageMetadata(offsets, sizes)
        index = MetadataIndex(QKV)
        object.__setattr__(index, "offset", offsets)
        metadata.storage_data[index] = place

    return change


def _change_size(size: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata[NORM], "size", size)


def _change_dtype(dtype: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata[NORM].properties, "dtype", dtype)


def _drop_chunk(metadata: Any) -> None:
    metadata.state_dict_metadata[QKV].chunks.pop()


def _repeat_chunk(metadata: Any) -> None:
    tensor = metadata.state_dict_metadata[QKV]
    tensor.chunks.append(tensor.chunks[0])


def _replace_chunk(metadata: Any) -> None:
    """The first chunk twice, the last one not at all: the number of elements is right."""
    tensor = metadata.state_dict_metadata[QKV]
    tensor.chunks[-1] = tensor.chunks[0]


def _exchange_places(metadata: Any) -> None:
    """A norm's data for a weight."""
    chunk = metadata.state_dict_metadata[QKV].chunks[0]
    metadata.storage_data[MetadataIndex(QKV, chunk.offsets)] = _first(metadata, NORM)


def _no_place(metadata: Any) -> None:
    del metadata.storage_data[MetadataIndex(NORM, metadata.state_dict_metadata[NORM].chunks[0].offsets)]


def _no_tensor(metadata: Any) -> None:
    metadata.state_dict_metadata[NORM] = BytesStorageMetadata()


def _torch_size(*sizes: Any) -> Any:
    return torch.Size(sizes)


WRONG: dict[str, Callable[[Any], None]] = {
    "offset beyond the file": _change_place(offset=10**9),
    "offset of 2 ** 62": _change_place(offset=2**62),
    "offset of 2 ** 100": _change_place(offset=2**100),
    "negative offset": _change_place(offset=-1000),
    "offset a float": _change_place(offset=0.0),
    "offset a string": _change_place(offset="0"),
    "offset None": _change_place(offset=None),
    "offset off by one": lambda metadata: _change_place(offset=_first(metadata, NORM).offset + 1)(metadata),
    "length 0": _change_place(length=0),
    "length 1": _change_place(length=1),
    "negative length": _change_place(length=-1),
    "length too short": lambda metadata: _change_place(length=_first(metadata, NORM).length - 1)(metadata),
    "length of a name": _change_place(length="abc"),
    "compressed": _change_place(transform_descriptors=["zstd"]),
    "absent file": _change_place(relative_path="__9_9.distcp"),
    "absolute path": _change_place(relative_path="/etc/passwd"),
    "parent": _change_place(relative_path="../latest_checkpointed_iteration.txt"),
    "parent below": _change_place(relative_path="tokenizer/../../secret"),
    "folder": _change_place(relative_path="tokenizer"),
    "itself": _change_place(relative_path=".metadata"),
    "another file": _change_place(relative_path="metadata.json"),
    "empty path": _change_place(relative_path=""),
    "NUL byte": _change_place(relative_path="__0_0.distcp\0"),
    "long path": _change_place(relative_path="x" * 5000),
    "path a number": _change_place(relative_path=7),
    "path None": _change_place(relative_path=None),
    "path bytes": _change_place(relative_path=b"__0_0.distcp"),
    "device": _change_place(relative_path="/dev/zero"),
    "chunk outside": _change_chunk(_torch_size(5, 0, 0), _torch_size(1, 64, 32)),
    "chunk larger": _change_chunk(_torch_size(0, 0, 0), _torch_size(2, 64, 32)),
    "chunk of 2 ** 60": _change_chunk(_torch_size(0, 0, 0), _torch_size(2**60, 64, 32)),
    "chunk of other axes": _change_chunk(_torch_size(0, 0), _torch_size(64, 32)),
    "chunk moved": _change_chunk(_torch_size(0, 1, 0), _torch_size(1, 64, 32)),
    "chunk empty": _change_chunk(_torch_size(0, 0, 0), _torch_size(0, 64, 32)),
    "chunk of floats": _change_chunk((0.0, 0.0, 0.0), (1.0, 64.0, 32.0)),
    "chunk of strings": _change_chunk(("0", "0", "0"), ("1", "64", "32")),
    "chunk of None": _change_chunk(None, None),
    "negative chunk": _change_chunk((0, -64, 0), (1, 64, 32)),
    "size None": _change_size(None),
    "size a number": _change_size(32),
    "size larger": _change_size(_torch_size(64)),
    "size smaller": _change_size(_torch_size(16)),
    "size of 2 ** 62": _change_size(_torch_size(2**62)),
    "size negative": _change_size((-32,)),
    "size a list": _change_size([32]),
    "size of 1000 axes": _change_size(_torch_size(*[1] * 1000)),
    "dtype wider": _change_dtype(torch.float64),
    "dtype narrower": _change_dtype(torch.bfloat16),
    "dtype as wide": _change_dtype(torch.int32),
    "dtype a name": _change_dtype("float32"),
    "dtype None": _change_dtype(None),
    "chunk lacking": _drop_chunk,
    "chunk twice": _repeat_chunk,
    "chunk for another": _replace_chunk,
    "place of another": _exchange_places,
    "no place": _no_place,
    "no tensor": _no_tensor,
    "no state": lambda metadata: setattr(metadata, "state_dict_metadata", None),
    "no storage": lambda metadata: setattr(metadata, "storage_data", None),
    "storage a list": lambda metadata: setattr(metadata, "storage_data", []),
    "state a list": lambda metadata: setattr(metadata, "state_dict_metadata", [1]),
    "chunks None": lambda metadata: setattr(metadata.state_dict_metadata[QKV], "chunks", None),
    "chunks of numbers": lambda metadata: setattr(metadata.state_dict_metadata[QKV], "chunks", [1]),
    "no properties": lambda metadata: setattr(metadata.state_dict_metadata[NORM], "properties", None),
    "properties of a chunk": lambda metadata: setattr(
        metadata.state_dict_metadata[NORM], "properties", metadata.state_dict_metadata[NORM].chunks[0]
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metadata(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    metadata = dcp.FileSystemReader(folder).read_metadata()
    WRONG[name](metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert is_refused(folder, folder)
    must_fail(lambda: read_all(folder), folder)
    must_fail(lambda: AutoBridge.from_hf_pretrained(ORIGINALS[0] / "hf").export_ckpt(folder, folder.parent / "x"), "")
    assert not (folder.parent / "x").exists()


def test_links_that_lead_outside(folder: Path) -> None:
    outside = folder.parent / "outside.distcp"
    (folder / "__0_0.distcp").rename(outside)
    (folder / "__0_0.distcp").symlink_to(outside)
    must_fail(lambda: read_all(folder), folder)


@FUZZ
@given(data=st.data())
def test_mutated_metadata(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["imported", "saved"]))
    folder = tmp_path_factory.getbasetemp() / "mutated_metadata" / kind / "iter_0000000"
    if not folder.exists():
        shutil.copytree(ORIGINALS[0] / kind / "iter_0000000", folder)
    content = bytearray((ORIGINALS[0] / kind / "iter_0000000" / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(content, len(content), data)
    (folder / ".metadata").write_bytes(content)
    is_refused(folder, folder)


# Archives


def _archive(folder: Path, key: str = NORM) -> tuple[Path, int, int]:
    """File, position and length of the archive of a key's first chunk."""
    place = _first(dcp.FileSystemReader(folder).read_metadata(), key)
    return folder / place.relative_path, place.offset, place.length


def _put(folder: Path, archive: bytes, key: str = NORM) -> Path:
    """Another archive in place of the key's first chunk, at the end of its file."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    place = _first(metadata, key)
    path = folder / place.relative_path
    object.__setattr__(place, "offset", path.stat().st_size)
    object.__setattr__(place, "length", len(archive))
    with path.open("ab") as file:
        file.write(archive)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def _structure(archive: bytes, data: bytes) -> list[int]:
    """Positions of an archive that are not the tensor's data; of the padding between records (ZZZ...) only some."""
    start = archive.index(data)
    positions = [*range(start), *range(start + len(data), len(archive))]
    return [at for at in positions if archive[at : at + 1] != b"Z" or at % 10 == 0]


@shares
def test_every_flipped_byte_of_an_archive(every: int, folder: Path) -> None:
    """All bytes but the tensor's own: refused, or without meaning. (Its own bytes are any; `verify` compares them.)"""
    path, position, length = _archive(folder)
    content = path.read_bytes()
    archive = content[position : position + length]
    original = read_all(folder)[NORM]
    num_refused = num_harmless = 0
    for at in _structure(archive, original.numpy().tobytes())[::every]:
        with path.open("rb+") as file:
            file.seek(position + at)
            file.write(bytes([archive[at] ^ (1 << at % 8 if at % 2 else 0xFF)]))
        result: list[torch.Tensor] = []
        if attempt(lambda to=result: to.append(TorchDistReader(folder).read(NORM, ((0, len(original)),))), path):
            num_refused += 1
        else:
            assert same_bits(result[0], original)
            num_harmless += 1
        with path.open("rb+") as file:
            file.seek(position + at)
            file.write(archive[at : at + 1])
    assert min(num_refused, num_harmless) > 200 // every  # dates, attributes, CRCs, padding and the like do not matter


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_file(fraction: float, folder: Path) -> None:
    path, position, length = _archive(folder)
    os.truncate(path, position + int(length * fraction))
    must_fail(lambda: read_all(folder), path)


def test_file_that_vanished_or_is_empty(folder: Path) -> None:
    path, _, _ = _archive(folder)
    path.write_bytes(b"")
    must_fail(lambda: read_all(folder), path)
    path.unlink()
    must_fail(lambda: read_all(folder), path)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _rezipped(
    archive: bytes, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", compression) as target:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                target.writestr(name, content)
    return buffer.getvalue()


def _forms(marker: Path) -> Iterator[tuple[str, bytes]]:
    good = torch.arange(32, dtype=torch.float32)
    command = f"touch {marker}"
    yield "a call", saved(Call(os.system, command))
    yield "a tensor and a call", saved([good, Call(os.system, command)])
    yield "a call as an attribute", saved({"a": Call(exec, f"open({str(marker)!r}, 'w')")})
    yield "a plain pickle", pickle.dumps(Call(os.system, command))
    yield (
        "a call for the tensor's pickle",
        _rezipped(
            saved(good), lambda name, content: pickle.dumps(Call(os.system, command)) if "data.pkl" in name else content
        ),
    )
    yield "another shape", saved(good[:31].clone())
    yield "more axes", saved(good.view(4, 8))
    yield "another dtype", saved(good.to(torch.int32))
    yield "a number", saved(5)
    yield "a list", saved([good])
    yield "a dict", saved({"a": good})
    yield "nothing", saved(None)
    yield "a module", saved(torch.nn.Linear(2, 2))
    yield "a meta tensor", saved(torch.empty(32, device="meta"))
    yield "a sparse tensor", saved(good.to_sparse())
    yield "a quantised tensor", saved(torch.quantize_per_tensor(good, 1.0, 0, torch.qint8))
    yield "two tensors", saved((good, good + 1))
    yield "an old archive", _old(good)
    yield "compressed", _rezipped(saved(good), lambda name, content: content, zipfile.ZIP_DEFLATED)
    yield "big-endian", _rezipped(saved(good), lambda name, content: b"big" if "byteorder" in name else content)
    yield "no data", _rezipped(saved(good), lambda name, content: None if "data/0" in name else content)
    yield "short data", _rezipped(saved(good), lambda name, content: content[:100] if "data/0" in name else content)
    yield "no pickle", _rezipped(saved(good), lambda name, content: None if "data.pkl" in name else content)
    yield "empty pickle", _rezipped(saved(good), lambda name, content: b"" if "data.pkl" in name else content)
    yield "an empty archive", b"PK\5\6" + bytes(18)
    yield "zeros", bytes(1000)
    yield "stride beyond the data", saved(torch.empty(0).set_(good.untyped_storage(), 0, (32,), (1,)))[:-10]
    yield "two data records", _rezipped(saved((good, good + 1)), lambda name, content: content)
    yield "data record renamed", saved(good).replace(b"archive/data/0", b"archive/data/1")


def _old(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


FORMS = [name for name, _ in _forms(Path("x"))]


@pytest.mark.parametrize("name", FORMS)
def test_another_archive(name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = _put(folder, dict(_forms(marker))[name])
    must_fail(lambda: read_all(folder), path)
    assert not marker.exists()


@pytest.mark.parametrize("stride", [0, 2, -1, 10**9])
def test_strides(stride: int, folder: Path) -> None:
    """A pickle that says that the elements lie elsewhere."""
    archive = saved(torch.arange(32, dtype=torch.float32))
    plain = pickle_of(archive)
    at = plain.index(b"K\x01\x85", plain.index(b"K\x20\x85"))  # the tuple (1,) after the shape (32,)
    changed = plain[:at] + b"J" + struct.pack("<i", stride) + b"\x85" + plain[at + 3 :]
    path = _put(folder, _rezipped(archive, lambda name, content: changed if "data.pkl" in name else content))
    must_fail(lambda: read_all(folder), path)


def test_permuted_axes(originals: Path, tmp_path: Path) -> None:
    """What PyTorch's writer makes of a transposed tensor is read as it is meant."""
    folder = Path(shutil.copytree(originals / "imported" / "iter_0000000", tmp_path / "iter_0000000"))
    value = torch.arange(64 * 32, dtype=torch.float32).view(1, 32, 64).transpose(1, 2)
    _put(folder, saved(value), QKV)
    assert same_bits(read_all(folder)[QKV][:1], value)


def pickle_of(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        content = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(content))
    return content


@FUZZ
@given(data=st.data())
def test_mutated_archive(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, removed or inserted anywhere in an archive but in the tensor's data."""
    folder = tmp_path_factory.getbasetemp() / "mutated_archive" / "imported" / "iter_0000000"
    if not folder.exists():
        shutil.copytree(ORIGINALS[0] / "imported" / "iter_0000000", folder)
    path, position, length = _archive(ORIGINALS[0] / "imported" / "iter_0000000")
    content = path.read_bytes()
    archive = bytearray(content[position : position + length])
    original = read_all(ORIGINALS[0] / "imported" / "iter_0000000")[NORM]
    values = original.numpy().tobytes()
    for _ in range(data.draw(st.integers(1, 3))):
        if values not in archive:
            return
        start = archive.index(values)
        if data.draw(st.booleans()):
            mutate(archive, start, data)
        else:
            mutate(archive, len(archive), data, start=start + len(values))
    archive = (archive + bytes(length))[:length]
    damaged = folder / path.name
    damaged.write_bytes(content[:position] + archive + content[position + length :])
    result: list[torch.Tensor] = []
    if attempt(lambda: result.append(TorchDistReader(folder).read(NORM, ((0, 32),))), damaged) is None:
        assert same_bits(result[0], original)


def test_the_cases_start_from_what_is_right(folder: Path) -> None:
    assert not is_refused(folder, folder) and verify_checkpoints(folder, ORIGINALS[0] / "hf").equal
    assert json.loads((folder / "metadata.json").read_bytes())["sharded_backend"] == "torch_dist"
    assert _put(folder, saved(torch.arange(32, dtype=torch.float32))).is_file()
    assert same_bits(read_all(folder)[NORM], torch.arange(32, dtype=torch.float32))
