"""Weight files and indexes that lie. The safetensors library is the oracle wherever it reads a file at all."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from megatron.bridge.models.hf_pretrained.source import SafetensorsSource
from tests.unit_tests.hostile.attempts import attempt, must_fail, same_tensors

INDEX = "model.safetensors.index.json"
FUZZ = settings(derandomize=True, max_examples=300, deadline=None, database=None)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    source = SafetensorsSource(folder)
    return {name: source.read(name).clone() for name in source}


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def good(**changes: Any) -> dict[str, Any]:
    """A header of two tensors, 24 and 8 bytes long, with entries of the first changed."""
    return {"a": {**entry(), **changes}, "b": entry("BF16", [4], [24, 32])}


def without(field: str) -> dict[str, Any]:
    header = good()
    del header["a"][field]
    return header


def write(path: Path, header: object, body: bytes = bytes(range(32)), length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


HUGE = 2**63
HEADERS: dict[str, object] = {
    "empty": b"",
    "null": b"null",
    "number": b"1",
    "string": b'"a"',
    "list": b"[]",
    "list of pairs": b'[["a", 1]]',
    "open brace": b"{",
    "closing brace": b"}",
    "spaces": b"     ",
    "NUL bytes": bytes(16),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep shape": json.dumps(good()).replace("[2, 3]", "[" * 50_000 + "]" * 50_000).encode(),
    "not UTF-8": json.dumps({"\xff": entry()}, ensure_ascii=False).encode("latin-1"),
    "UTF-16": json.dumps(good()).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(good()).encode(),
    "lone surrogate": b'{"\\ud800":' + json.dumps(entry(shape=[8], offsets=[0, 32])).encode() + b"}",
    "text behind": json.dumps(good()).encode() + b"{}",
    "NUL behind": json.dumps(good()).encode() + b"\0",
    "comment": b"/* a */" + json.dumps(good()).encode(),
    "number of 5000 digits": json.dumps(good()).replace("[2, 3]", f"[{'9' * 5000}]").encode(),
    "two tensors of one name": b'{"a":%s,"a":%s}' % ((json.dumps(entry(shape=[8], offsets=[0, 32])).encode(),) * 2),
    "two dtypes": json.dumps(good()).replace('"dtype": "F32"', '"dtype": "F32", "dtype": "I32"').encode(),
    "two metadata": b'{"__metadata__":{},"__metadata__":{},' + json.dumps(good()).encode()[1:],
    "metadata a list": {"__metadata__": ["pt"], **good()},
    "metadata a string": {"__metadata__": "pt", **good()},
    "metadata of numbers": {"__metadata__": {"format": 1}, **good()},
    "metadata nested": {"__metadata__": {"format": {"a": "b"}}, **good()},
    "metadata with a tensor": {"__metadata__": entry(), **good()},
    "tensor a list": {"a": [], "b": entry("BF16", [4], [24, 32])},
    "tensor null": {"a": None, "b": entry("BF16", [4], [24, 32])},
    "tensor a number": {"a": 1, "b": entry("BF16", [4], [24, 32])},
    "tensor empty": {"a": {}, "b": entry("BF16", [4], [24, 32])},
    "unknown dtype": good(dtype="F13"),
    "dtype in lower case": good(dtype="f32"),
    "dtype of torch": good(dtype="float32"),
    "dtype empty": good(dtype=""),
    "dtype a number": good(dtype=4),
    "dtype null": good(dtype=None),
    "dtype a list": good(dtype=["F32"]),
    "dtype an object": good(dtype={"F32": 1}),
    "wider dtype": good(dtype="F64"),
    "narrower dtype": good(dtype="F16"),
    "half a byte of 4-bit values": good(dtype="F4", shape=[3, 3], data_offsets=[0, 24]),
    "no dtype": without("dtype"),
    "negative size": good(shape=[-2, -3]),
    "size a float": good(shape=[2.0, 3]),
    "size a fraction": good(shape=[2.5, 3]),
    "size a string": good(shape=["2", 3]),
    "size null": good(shape=[None, 3]),
    "size true": good(shape=[True, 6]),
    "size a list": good(shape=[[2], 3]),
    "shape a number": good(shape=6),
    "shape a string": good(shape="23"),
    "shape null": good(shape=None),
    "shape an object": good(shape={"0": 2, "1": 3}),
    "shape too large": good(shape=[2, 4]),
    "shape too small": good(shape=[2, 2]),
    "shape of 2 ** 63": good(shape=[HUGE]),
    "shape of 2 ** 64": good(shape=[2 * HUGE, 3]),
    "shape that overflows to 6": good(shape=[2**32, 2**32, 6]),
    "shape that overflows to 0": good(shape=[2**32, 2**33]),
    "zero times 2 ** 64": good(shape=[0, 2 * HUGE]),
    "100000 axes": good(shape=[2, 3] + [1] * 100_000),
    "no shape": without("shape"),
    "reversed offsets": good(data_offsets=[24, 0]),
    "negative offsets": good(data_offsets=[-24, 0]),
    "wrapped offsets": good(data_offsets=[2 * HUGE - 24, 0]),
    "offsets of 2 ** 63": good(data_offsets=[HUGE, HUGE + 24]),
    "offsets of 2 ** 70": good(data_offsets=[2**70, 2**70 + 24]),
    "one offset": good(data_offsets=[24]),
    "three offsets": good(data_offsets=[0, 24, 32]),
    "no offset": good(data_offsets=[]),
    "offsets of floats": good(data_offsets=[0.0, 24.0]),
    "offsets of strings": good(data_offsets=["0", "24"]),
    "offsets null": good(data_offsets=None),
    "offsets a number": good(data_offsets=24),
    "offsets true": good(data_offsets=[False, 24]),
    "no offsets": without("data_offsets"),
    "overlap": {"a": entry(), "b": entry("BF16", [4], [20, 28])},
    "the same bytes twice": {"a": entry(), "b": entry(), "c": entry("BF16", [4], [24, 32])},
    "gap": {"a": entry(), "b": entry("BF16", [2], [28, 32])},
    "gap at the start": {"a": entry(offsets=[4, 28]), "b": entry("BF16", [2], [28, 32])},
    "bytes behind": {"a": entry()},
    "beyond the file": {"a": entry(), "b": entry("BF16", [6], [24, 36])},
    "far beyond the file": {"a": entry(), "b": entry("BF16", [2**40], [24, 24 + 2**41])},
    "offsets longer than the shape": good(shape=[2, 2], data_offsets=[0, 24]),
    "unknown field": {"a": {**entry(), "pickle": "c"}, "b": entry("BF16", [4], [24, 32])},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header(header: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, header)
    result: dict[str, torch.Tensor] = {}
    if attempt(lambda: result.update(read_all(tmp_path)), path) is None:
        # Harmless: the library reads the same. It cannot be harmless if it refuses.
        assert same_tensors(result, load_file(path))


def test_most_headers_are_refused(tmp_path: Path) -> None:
    """The headers above that are accepted, all of them valid for the library."""
    accepted = []
    for name, header in HEADERS.items():
        write(tmp_path / "model.safetensors", header)
        if attempt(lambda: read_all(tmp_path), tmp_path) is None:
            accepted.append(name)
    assert accepted == ["100000 axes", "unknown field"]


@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
        7,
        100,
        134,
        136,
        139,
        140,
        167,
        168,
        169,
        2**31,
        2**32 - 1,
        2**40,
        HUGE - 1,
        HUGE,
        2 * HUGE - 9,
        2 * HUGE - 1,
    ],
)
def test_length_of_the_header(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, good(), length=length)
    assert length != len(json.dumps(good()))
    must_fail(lambda: read_all(tmp_path), path)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**42 - 8))
        file.truncate(2**42)
    must_fail(lambda: read_all(tmp_path), path)


def test_many_names_of_which_the_last_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {f"n{index}": entry("U8", [0], [0, 0]) for index in range(50_000)}
    text = json.dumps(header)[:-1] + ', "n49999": {}}'
    write(path, text.encode(), b"")
    must_fail(lambda: read_all(tmp_path), path)


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9, 50, 139, 137, 138, 150, 168])
def test_truncated(num_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, good())
    content = path.read_bytes()
    assert len(content) > num_bytes
    path.write_bytes(content[:num_bytes])
    must_fail(lambda: read_all(tmp_path), path)


@FUZZ
@given(data=st.data())
def test_mutated_header(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes of the header changed, removed or inserted: refused, or read as the library reads it."""
    folder = tmp_path_factory.getbasetemp() / "mutated_header"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    write(path, {"__metadata__": {"format": "pt"}, **good()})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(content, len(content) - 32, data)
    path.write_bytes(content)
    result: dict[str, torch.Tensor] = {}
    if attempt(lambda: result.update(read_all(folder)), path) is None:
        assert same_tensors(result, load_file(path))


def mutate(content: bytearray, stop: int, data: st.DataObject, start: int = 0) -> None:
    """Changes bytes of `content[start:stop]`: one bit, some bytes, or their number."""
    at = data.draw(st.integers(start, stop - 1))
    kind = data.draw(st.sampled_from(["bit", "bytes", "digit", "insert", "remove"]))
    if kind == "bit":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "bytes":
        new = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(new)] = new
    elif kind == "digit":
        digits = [index for index in range(start, stop) if 48 <= content[index] < 58] or [at]
        content[data.draw(st.sampled_from(digits))] = data.draw(st.sampled_from(b"0123456789-.eE"))
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    else:
        del content[at : at + data.draw(st.integers(1, 8))]


# Indexes


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files with an index, and outside of the folder a file that is not the model's."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
    save_file({"secret": torch.ones(1)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps(_index()))
    return folder


def _index(**changes: Any) -> dict[str, Any]:
    return {"metadata": {"total_size": 20}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}, **changes}


def _map(**changes: Any) -> dict[str, Any]:
    return _index(weight_map={"a": "one.safetensors", "b": "two.safetensors", **changes})


SECRET = "secret.safetensors"
INDEXES: dict[str, object] = {
    "empty": b"",
    "null": b"null",
    "number": b"1",
    "list": b"[]",
    "string": b'"weight_map"',
    "object": b"{}",
    "cut": json.dumps(_index()).encode()[:-5],
    "NUL bytes": bytes(20),
    "not UTF-8": b'{"weight_map": {"\xff": "one.safetensors"}}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"weight_map":' * 50_000,
    "deep metadata": b'{"metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "map null": _index(weight_map=None),
    "map a list": _index(weight_map=["one.safetensors"]),
    "map a string": _index(weight_map="one.safetensors"),
    "map a number": _index(weight_map=1),
    "no map": {"metadata": {}},
    "metadata a list": _index(metadata=[1]),
    "metadata pairs": _index(metadata=[["total_size", 20]]),
    "metadata a string": _index(metadata="ab"),
    "metadata a number": _index(metadata=1),
    "empty map": _index(weight_map={}),
    "file a number": _map(b=2),
    "file null": _map(b=None),
    "file a list": _map(b=["two.safetensors"]),
    "file an object": _map(b={"file": "two.safetensors"}),
    "file true": _map(b=True),
    "file empty": _map(b=""),
    "file the folder": _map(b="."),
    "file absent": _map(b="three.safetensors"),
    "file is the index": _map(b=INDEX),
    "file with a NUL byte": _map(b="two.safetensors\0"),
    "file with a long name": _map(b="x" * 5000),
    "file with a long path": _map(b="x/" * 5000),
    "absolute": _map(b="/etc/passwd"),
    "absolute, twice": _map(b="//etc/passwd"),
    "parent": _map(secret=f"../{SECRET}"),
    "parent's parent": _map(b="../../x.safetensors"),
    "parent below": _map(secret=f"x/../../{SECRET}"),
    "parent in the end": _map(b="x/.."),
    "through itself": _map(secret=f"../model/../{SECRET}"),
    "proc": _map(b="/proc/self/environ"),
    "device": _map(b="/dev/zero"),
    "names swapped": _map(a="two.safetensors", b="one.safetensors"),
    "name not in the file": _map(c="one.safetensors"),
    "name missing": _index(weight_map={"a": "one.safetensors", "c": "two.safetensors"}),
    "only one file": _index(weight_map={"a": "one.safetensors"}),
    "name twice": b'{"weight_map":{"a":"one.safetensors","a":"one.safetensors","b":"two.safetensors"}}',
    "map twice": b'{"weight_map":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}',
}
HARMLESS_INDEXES = ["only one file"]  # the index decides which files are the model


@pytest.mark.parametrize("name", INDEXES)
def test_index(name: str, sharded: Path) -> None:
    content = INDEXES[name]
    (sharded / INDEX).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result: dict[str, torch.Tensor] = {}
    error = attempt(lambda: result.update(read_all(sharded)), sharded)
    assert (error is None) == (name in HARMLESS_INDEXES)
    assert "secret" not in result


@pytest.mark.parametrize("name", ["link.safetensors", "sub/x.safetensors", "model.safetensors"])
@pytest.mark.parametrize("with_index", [True, False])
def test_links_that_lead_outside(name: str, with_index: bool, sharded: Path) -> None:
    if "/" in name:
        (sharded / "sub").symlink_to(sharded.parent)
        name = f"sub/{SECRET}"
    else:
        (sharded / name).symlink_to(sharded.parent / SECRET)
    index = {"weight_map": {"secret": name}}
    (sharded / INDEX).write_text(json.dumps(index))
    if not with_index:
        (sharded / INDEX).unlink()
        if "/" in name:
            (sharded / "x.safetensors").symlink_to(sharded / name)
    must_fail(lambda: read_all(sharded), sharded)


def test_links_that_do_not(sharded: Path, tmp_path: Path) -> None:
    """Into the folder, and from a snapshot of the Hugging Face cache into its blobs."""
    (sharded / "blob").write_bytes((sharded / "two.safetensors").read_bytes())
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to("blob")
    assert read_all(sharded).keys() == {"a", "b"}
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    shutil.copytree(sharded, snapshot)
    for index, path in enumerate(sorted(snapshot.iterdir())):
        blob = tmp_path / "models--a--b" / "blobs" / str(index)
        path.rename(blob)
        path.symlink_to(f"../../blobs/{index}")
    assert read_all(snapshot).keys() == {"a", "b"}


def test_a_link_to_itself(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to("two.safetensors")
    must_fail(lambda: read_all(sharded), sharded)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"")], ids=["folder", "empty"])
def test_a_file_that_is_none(make: Callable[[Path], Any], sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    make(sharded / "two.safetensors")
    must_fail(lambda: read_all(sharded), sharded)


@FUZZ
@given(data=st.data())
def test_mutated_index(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Refused, or the tensors are those of the files."""
    folder = tmp_path_factory.getbasetemp() / "mutated_index"
    folder.mkdir(exist_ok=True)
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    for name, file in (("a", "one"), ("b", "two")):
        if not (folder / f"{file}.safetensors").is_file():
            save_file({name: tensors[name]}, folder / f"{file}.safetensors")
    content = bytearray(json.dumps(_index(), indent=1).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(content, len(content), data)
    (folder / INDEX).write_bytes(content)
    result: dict[str, torch.Tensor] = {}
    if attempt(lambda: result.update(read_all(folder)), folder) is None:
        assert same_tensors(result, {name: tensors[name] for name in result})
        assert result


def test_the_oracle_refuses_as_well(tmp_path: Path) -> None:
    """The library accepts nothing of the refused headers but those that are valid for it and yet ambiguous."""
    accepted = []
    for name, header in HEADERS.items():
        path = tmp_path / "model.safetensors"
        write(path, header)
        try:
            load_file(path)
        except (SafetensorError, OSError, KeyError):
            continue
        accepted.append(name)
    assert set(accepted) <= {"unknown field", "100000 axes", "two dtypes", "two metadata", "two tensors of one name"}
