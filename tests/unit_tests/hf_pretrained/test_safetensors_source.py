import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, has_weights
from megatron.bridge.verification.bits import same_bits
from tests.unit_tests.hf_pretrained.samples import ALL_DTYPES, raw_file, tiny_llama

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
def test_reads_what_transformers_saves(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    model = tiny_llama(tied)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    source = SafetensorsSource(tmp_path)

    expected = dict(model.state_dict())
    if tied:
        del expected["lm_head.weight"]
    assert set(source) == set(expected) == set(source.infos)
    for name, tensor in expected.items():
        info = source.infos[name]
        assert (info.name, info.shape, info.dtype) == (name, tuple(tensor.shape), tensor.dtype)
        assert same_bits(source.read(name), tensor)
        assert same_bits(source[name], tensor)
    assert source.nbytes == sum(tensor.nbytes for tensor in expected.values())

    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) == (max_shard_size == "4KB")
    assert list(source.shards) == files
    for filename in files:
        with safe_open(tmp_path / filename, "pt") as file:
            assert source.shards[filename] == file.offset_keys()
            assert source.file_metadata[filename] == file.metadata() == {"format": "pt"}
            assert {source.infos[name].filename for name in file.offset_keys()} == {filename}
    if len(files) > 1:
        assert source.index_metadata == json.loads((tmp_path / INDEX).read_text())["metadata"]
    else:
        assert source.index_metadata is None


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    data = torch.randint(0, 2, (3, 4 * max(dtype.itemsize, 1)), dtype=torch.uint8).view(dtype)
    save_file({"w": data}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    assert source.infos["w"].shape == tuple(data.shape)
    assert source.infos["w"].dtype == dtype
    assert source.infos["w"].nbytes == data.nbytes
    assert same_bits(source.read("w"), data)


def test_scalars_empty_tensors_and_order_of_metadata(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"z": "1", "format": "pt", "a": "é"},
        "second": {"dtype": "F32", "shape": [], "data_offsets": [3, 7]},
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [7, 7]},
        "first": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    raw_file(tmp_path / "model.safetensors", header, b"\1\2\3" + struct.pack("<f", 2.5))
    source = SafetensorsSource(tmp_path)
    assert list(source) == source.shards["model.safetensors"] == ["first", "second", "empty"]
    assert list(source.file_metadata["model.safetensors"]) == ["z", "format", "a"]
    assert source.read("first").tolist() == [1, 2, 3]
    assert source.read("second").item() == 2.5  # its data is not aligned to 4 bytes
    assert source.read("empty").shape == (0, 3)


def test_reading_is_zero_copy(tmp_path: Path) -> None:
    """A tensor's address lies in a private memory map of the file, and writing into it leaves the file alone."""
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(1 << 20, dtype=torch.float32)}, path)
    before = path.read_bytes()
    tensor = SafetensorsSource(tmp_path).read("w")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    assert any(start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= stop for start, stop in spans)
    tensor.zero_()
    assert path.read_bytes() == before


def test_the_index_decides_which_files_are_the_model(sharded_llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded_llama_folder, tmp_path / "model")
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    assert "other" not in SafetensorsSource(folder)


def test_without_an_index_every_file_counts(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "part-a.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "part-b.safetensors")
    assert list(SafetensorsSource(tmp_path)) == ["a", "b"]
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(SafetensorsSource(tmp_path)) == ["c"]


def test_unknown_name(llama_folder: Path) -> None:
    source = SafetensorsSource(llama_folder)
    with pytest.raises(CheckpointError, match=r"no tensor nope\.weight"):
        source.read("nope.weight")
    with pytest.raises(KeyError, match="nope"):
        source["nope"]
    assert source.get("nope") is None
    assert "nope" not in source


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no weights.*model\.safetensors"):
        SafetensorsSource(tmp_path)
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        SafetensorsSource(tmp_path / "absent")
    assert not has_weights(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never unpickled.*Convert them to safetensors"):
        SafetensorsSource(tmp_path)
    assert not has_weights(tmp_path)


@pytest.fixture
def folder(sharded_llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded_llama_folder, tmp_path / "model")


def edit_index(folder: Path, edit) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_absent_files_are_all_named(folder: Path) -> None:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / files[0]).unlink()
    (folder / files[2]).unlink()
    with pytest.raises(CheckpointError, match=f"2 of {len(files)} files are absent: {files[0]}, {files[2]}"):
        SafetensorsSource(folder)
    assert has_weights(folder)


@pytest.mark.parametrize("outside", ["../stolen.safetensors", "/etc/passwd", "a/../../stolen.safetensors"])
def test_index_leading_outside_the_folder(folder: Path, outside: str) -> None:
    save_file({"w": torch.ones(1)}, folder.parent / "stolen.safetensors")
    edit_index(folder, lambda index: index["weight_map"].update({"w": outside}))
    with pytest.raises(CheckpointError, match=f"outside the folder: {outside}"):
        SafetensorsSource(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "{"])
def test_malformed_index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{INDEX}: malformed index"):
        SafetensorsSource(folder)


def test_index_and_files_disagree(folder: Path) -> None:
    name, other = "model.norm.weight", "model.layers.0.input_layernorm.weight"
    filename = SafetensorsSource(folder).infos[name].filename
    elsewhere = next(path.name for path in sorted(folder.glob("*.safetensors")) if path.name != filename)

    def edit(index: dict) -> None:
        index["weight_map"]["ghost"] = filename
        index["weight_map"][name] = elsewhere
        del index["weight_map"][other]

    edit_index(folder, edit)
    with pytest.raises(CheckpointError) as error:
        SafetensorsSource(folder)
    message = str(error.value)
    assert f"ghost is not in {filename}" in message
    assert f"{name} is not in {elsewhere} but in {filename}" in message
    assert f"{other} of " in message and "is not in the index" in message


def test_two_sets_of_weights(folder: Path) -> None:
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"both model\.safetensors and an index"):
        SafetensorsSource(folder)


def test_same_tensor_in_two_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1), "a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"w is in both one\.safetensors and two\.safetensors"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 100, -1])
def test_truncated_file(llama_folder: Path, tmp_path: Path, num_bytes: int) -> None:
    content = (llama_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:num_bytes])
    assert load_file(llama_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/model\.safetensors: truncated"):
        SafetensorsSource(tmp_path)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a git-lfs pointer.*git lfs pull"):
        SafetensorsSource(tmp_path)


def entry(shape=(3,), offsets=(0, 3), dtype="U8") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": entry(dtype="F13")}, "tensor w has dtype 'F13'"),
        ({"w": entry(dtype="F6_E2M3", shape=[4])}, "tensor w has dtype 'F6_E2M3'"),
        (b"not json", "malformed safetensors header"),
        (b"[1]", "malformed safetensors header"),
        ({"w": 3}, "malformed safetensors header"),
        ({"w": {"dtype": "U8"}}, "malformed safetensors header"),
        (b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2), "repeated key 'w'"),
        ({"w": entry(shape=[4])}, "not a valid safetensors file"),
        ({"w": entry(offsets=[0, 2], shape=[2])}, "not a valid safetensors file"),
        ({"v": entry([1], [0, 1]), "w": entry([1], [2, 3])}, "not a valid safetensors file"),
        ({"v": entry([2], [0, 2]), "w": entry([2], [1, 3])}, "not a valid safetensors file"),
        ({"__metadata__": {"a": 1}, "w": entry()}, "not a valid safetensors file"),
    ],
)
def test_malformed_file(tmp_path: Path, header: object, message: str) -> None:
    raw_file(tmp_path / "model.safetensors", header, b"abc")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}") as error:
        SafetensorsSource(tmp_path)
    assert str(tmp_path) in str(error.value)
