import itertools
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, TensorInfo
from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter, plan_shards
from megatron.bridge.verification.bits import same_bits
from tests.unit_tests.hf_pretrained.samples import ALL_DTYPES, tiny_llama

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(0, high, (num_bytes,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def infos_of(tensors: dict[str, torch.Tensor]) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(tensor.shape), tensor.dtype, "") for name, tensor in tensors.items()]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def plan_of(source: SafetensorsSource) -> dict[str, list[TensorInfo]]:
    return {filename: [source.infos[name] for name in names] for filename, names in source.shards.items()}


def test_one_file_is_what_save_file_writes(tmp_path: Path) -> None:
    tensors = {f'weight é "{i}"\n': random_tensor((3, 4), dtype, i) for i, dtype in enumerate(ALL_DTYPES)}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "b": torch.ones(5), "a": torch.ones(5)}
    metadata = {"format": "pt\n\x01é/"}
    save_file(tensors, tmp_path / "expected.safetensors", metadata=metadata)

    out = tmp_path / "out"
    with SafetensorsWriter(out, plan_shards(infos_of(tensors)), file_metadata={SINGLE: metadata}) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor)
    assert files_of(out) == [SINGLE]
    assert (out / SINGLE).read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    with safe_open(out / SINGLE, "pt") as file:
        assert file.metadata() == metadata


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 4000, 2000])
def test_plan_and_files_are_those_of_transformers(tmp_path: Path, tied: bool, max_shard_bytes: int) -> None:
    model = tiny_llama(tied)
    model.save_pretrained(tmp_path / "expected", max_shard_size=max_shard_bytes)
    tensors = dict(model.state_dict())
    if tied:
        del tensors["lm_head.weight"]
    is_sharded = (tmp_path / "expected" / INDEX).exists()
    metadata = {"total_parameters": model.num_parameters()} if is_sharded else None
    plan = plan_shards(infos_of(tensors), max_shard_bytes)
    assert all(info.filename == filename for filename, infos in plan.items() for info in infos)
    with SafetensorsWriter(tmp_path / "out", plan, index_metadata=metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)

    names = files_of(tmp_path / "out")
    assert (len(names) > 2) == (max_shard_bytes < 10**9)
    assert names == [name for name in files_of(tmp_path / "expected") if "safetensors" in name]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name


def test_a_source_layout_gives_the_source_bytes(sharded_llama_folder: Path, tmp_path: Path) -> None:
    """Also where the order of tensors and metadata is not the library's."""
    folder = shutil.copytree(sharded_llama_folder, tmp_path / "in")
    first = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(first)
    names = sorted(tensors, reverse=True)
    entries: dict = {"__metadata__": {"z": "1", "format": "pt", "b": "2"}}
    body = b""
    for name in names:
        data = tensors[name].view(torch.uint8).numpy().tobytes()
        entries[name] = {
            "dtype": "BF16",
            "shape": list(tensors[name].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first.write_bytes(len(text).to_bytes(8, "little") + text + body)

    source = SafetensorsSource(folder)
    out = tmp_path / "out"
    with SafetensorsWriter(out, plan_of(source), source.file_metadata, source.index_metadata) as writer:
        for name in sorted(source):
            writer.write(name, source.read(name))
    for name in files_of(out):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    assert len(files_of(out)) == len(source.shards) + 1


def test_a_single_file_with_an_index_keeps_its_index(tmp_path: Path) -> None:
    plan = plan_shards([TensorInfo("w", (2,), torch.float32, "")])
    with SafetensorsWriter(tmp_path, plan, index_metadata={"total_size": 1, "kept": "yes"}) as writer:
        writer.write("w", torch.ones(2))
    index = json.loads((tmp_path / INDEX).read_text())
    assert index == {"metadata": {"kept": "yes", "total_size": 8}, "weight_map": {"w": SINGLE}}


def test_output_may_replace_its_own_source(sharded_llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded_llama_folder, tmp_path / "model")
    source = SafetensorsSource(folder)
    expected = {name: source.read(name).clone() + 1 for name in source}
    with SafetensorsWriter(folder, plan_of(source), source.file_metadata, source.index_metadata) as writer:
        for name in source:
            writer.write(name, source.read(name) + 1)
    again = SafetensorsSource(folder)
    assert all(same_bits(again.read(name), tensor) for name, tensor in expected.items())


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / SINGLE).symlink_to(blob)
    with SafetensorsWriter(out, plan_shards([TensorInfo("w", (2,), torch.float32, "")])) as writer:
        writer.write("w", torch.ones(2))
    assert blob.read_bytes() == b"precious"
    assert not (out / SINGLE).is_symlink()


row_shapes = st.lists(st.integers(0, 5), min_size=0, max_size=2).flatmap(
    lambda rest: st.integers(0, 12).map(lambda rows: (rows, *rest))
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_row_ranges_in_any_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Every partition of the rows, in every order, gives the file that `save_file` writes."""
    shapes = data.draw(st.lists(row_shapes, min_size=1, max_size=3))
    dtypes = [data.draw(st.sampled_from(ALL_DTYPES)) for _ in shapes]
    tensors = {f"t{i}": random_tensor(s, d, i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))}
    tasks = []
    for name, tensor in tensors.items():
        rows = tensor.shape[0]
        cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
        tasks += [(name, start, stop) for start, stop in itertools.pairwise(cuts)]
    folder = tmp_path_factory.mktemp("rows")
    with SafetensorsWriter(folder, plan_shards(infos_of(tensors))) as writer:
        for name, start, stop in data.draw(st.permutations(tasks)):
            writer.write_rows(name, start, tensors[name][start:stop])
    save_file(tensors, folder / "expected", metadata={"format": "pt"})
    assert (folder / SINGLE).read_bytes() == (folder / "expected").read_bytes()


@settings(max_examples=60, deadline=None)
@given(ranges=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 10)).filter(lambda r: r[0] < r[1]), max_size=8))
def test_coverage_is_tracked_exactly(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]) -> None:
    """Against a set of rows: overlaps are refused, and the writer closes if and only if every row was written."""
    folder = tmp_path_factory.mktemp("coverage")
    writer = SafetensorsWriter(folder, plan_shards([TensorInfo("w", (10,), torch.uint8, "")]))
    written: set[int] = set()
    for start, stop in ranges:
        rows = set(range(start, stop))
        tensor = torch.full((stop - start,), start, dtype=torch.uint8)
        if rows & written:
            with pytest.raises(CheckpointError, match=r"w: bytes .* already written"):
                writer.write_rows("w", start, tensor)
        else:
            writer.write_rows("w", start, tensor)
            written |= rows
    if len(written) == 10:
        writer.close()
    else:
        with pytest.raises(CheckpointError, match=rf"w \({len(written)} of 10 bytes\)"):
            writer.close()
    assert files_of(folder) == ([SINGLE] if len(written) == 10 else [])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(4, 3).T,
        torch.arange(24.0).reshape(3, 8)[:, ::2],
        torch.arange(4.0).expand(3, 4),
        torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)),
        torch.arange(24.0).reshape(6, 4)[3:],
    ],
    ids=["transposed", "strided", "expanded", "parameter", "offset view"],
)
def test_views_are_written_by_value(tmp_path: Path, tensor: torch.Tensor) -> None:
    with SafetensorsWriter(tmp_path, plan_shards(infos_of({"w": tensor}))) as writer:
        writer.write("w", tensor)
    assert torch.equal(load_file(tmp_path / SINGLE)["w"], tensor)


def test_contiguous_tensors_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = []
    pwrite = os.pwrite

    def spy(descriptor: int, buffer: memoryview, offset: int) -> int:
        addresses.append(torch.frombuffer(buffer, dtype=torch.uint8).data_ptr())
        return pwrite(descriptor, buffer, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    tensors = {str(dtype): random_tensor((8, 2), dtype) for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.bool)}
    with SafetensorsWriter(tmp_path, plan_shards(infos_of(tensors))) as writer:
        for name, tensor in tensors.items():
            writer.write_rows(name, 0, tensor[:3])
            writer.write_rows(name, 3, tensor[3:])
    assert addresses == [part.data_ptr() for tensor in tensors.values() for part in (tensor[:3], tensor[3:])]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than asked (on Linux never more than 2 GiB at once)."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, buffer, offset: pwrite(descriptor, buffer[:7], offset))
    tensor = torch.arange(100)
    with SafetensorsWriter(tmp_path, plan_shards(infos_of({"w": tensor}))) as writer:
        writer.write("w", tensor)
    assert torch.equal(load_file(tmp_path / SINGLE)["w"], tensor)


def test_threads_write_together(tmp_path: Path) -> None:
    tensors = {f"w{i}": random_tensor((64, 32), torch.bfloat16, i) for i in range(8)}
    with SafetensorsWriter(tmp_path, plan_shards(infos_of(tensors), 10_000)) as writer:

        def work(first_row: int) -> None:
            for name, tensor in tensors.items():
                writer.write_rows(name, first_row, tensor[first_row : first_row + 16])

        threads = [threading.Thread(target=work, args=(row,)) for row in range(0, 64, 16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    source = SafetensorsSource(tmp_path)
    assert all(same_bits(source.read(name), tensor) for name, tensor in tensors.items())


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    tensors = {f"w{i}": random_tensor((4, 4), torch.float32, i) for i in range(4)}
    plan = plan_shards(infos_of(tensors), 128)
    files = list(plan)
    assert len(files) == 2
    with SafetensorsWriter(tmp_path, plan, files=files[:1], writes_index=False) as writer:
        for info in plan[files[0]]:
            writer.write(info.name, tensors[info.name])
    assert files_of(tmp_path) == [files[0]]
    with SafetensorsWriter(tmp_path, plan, files=files[1:]) as writer:
        for info in plan[files[1]]:
            writer.write(info.name, tensors[info.name])
        with pytest.raises(CheckpointError, match=f"w0: no such tensor in the files.*{files[1]}"):
            writer.write("w0", tensors["w0"])
    assert set(SafetensorsSource(tmp_path)) == set(tensors)


@pytest.fixture
def small_plan() -> dict[str, list[TensorInfo]]:
    return plan_shards([TensorInfo("a", (4, 2), torch.float32, ""), TensorInfo("b", (2,), torch.bfloat16, "")], 32)


def test_incomplete_tensors_are_all_named_and_nothing_is_kept(tmp_path: Path, small_plan: dict) -> None:
    writer = SafetensorsWriter(tmp_path, small_plan)
    writer.write_rows("a", 1, torch.ones(2, 2))
    assert all(name.endswith(".partial") for name in files_of(tmp_path))
    with pytest.raises(CheckpointError, match=r"2 of 2 tensors .*a \(16 of 32 bytes\), b \(0 of 4 bytes\)"):
        writer.close()
    assert files_of(tmp_path) == []


def test_an_exception_keeps_what_was_there_before(tmp_path: Path, small_plan: dict) -> None:
    names = list(small_plan)
    (tmp_path / names[0]).write_bytes(b"before")

    def fail() -> None:
        with SafetensorsWriter(tmp_path, small_plan) as writer:
            writer.write("a", torch.ones(4, 2))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert files_of(tmp_path) == [names[0]]
    assert (tmp_path / names[0]).read_bytes() == b"before"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.write("nope", torch.ones(1)), "nope: no such tensor"),
        (lambda w: w.write("a", torch.ones(2, 4)), r"a: expected shape \[4, 2\], found \[2, 4\]"),
        (lambda w: w.write("b", torch.ones(2)), r"b: expected dtype torch\.bfloat16, found torch\.float32"),
        (lambda w: w.write_rows("a", 3, torch.ones(2, 2)), "a: rows 3 to 5 are outside its 4 rows"),
        (lambda w: w.write_rows("a", -1, torch.ones(2, 2)), "a: rows -1 to 1 are outside"),
        (lambda w: w.write_rows("a", 0, torch.ones(2, 3)), r"a: expected rows of shape \[2\]"),
        (lambda w: w.write_rows("a", 0, torch.ones(2)), r"a: expected rows of shape \[2\]"),
        (lambda w: w.write_rows("a", 0, torch.ones(1, 2, dtype=torch.int32)), "a: expected dtype"),
        (lambda w: (w.write("a", torch.ones(4, 2)), w.write("a", torch.ones(4, 2))), "a: bytes 0 to 32 .*already"),
    ],
)
def test_wrong_writes(tmp_path: Path, small_plan: dict, call, message: str) -> None:
    writer = SafetensorsWriter(tmp_path, small_plan)
    with pytest.raises(CheckpointError, match=message):
        call(writer)
    writer.abort()
    assert files_of(tmp_path) == []


def test_a_closed_writer_takes_no_more(tmp_path: Path, small_plan: dict) -> None:
    with SafetensorsWriter(tmp_path, small_plan) as writer:
        writer.write("a", torch.ones(4, 2))
        writer.write("b", torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=rf"a: the writer of {tmp_path} is closed"):
        writer.write("a", torch.ones(4, 2))
    writer.close()


def test_a_failure_to_create_the_files_leaves_nothing(tmp_path: Path, small_plan: dict) -> None:
    (tmp_path / f"{list(small_plan)[1]}.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        SafetensorsWriter(tmp_path, small_plan)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_stale_weights_in_the_output_folder(tmp_path: Path, small_plan: dict) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model-00001-of-00009.safetensors")
    with pytest.raises(CheckpointError, match=r"already holds other weights: model-00001-of-00009\.safetensors"):
        SafetensorsWriter(tmp_path, small_plan)
    (tmp_path / "model-00001-of-00009.safetensors").unlink()
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"other weights: {INDEX}"):
        SafetensorsWriter(tmp_path, plan_shards([TensorInfo("w", (1,), torch.float32, "")]))


def test_inconsistent_plans(tmp_path: Path, small_plan: dict) -> None:
    info = TensorInfo("w", (1,), torch.float32, "")
    with pytest.raises(CheckpointError, match="w: the same tensor twice"):
        plan_shards([info, info])
    with pytest.raises(CheckpointError, match="planned twice: w"):
        SafetensorsWriter(tmp_path, {"a.safetensors": [info], "b.safetensors": [info]})
    with pytest.raises(CheckpointError, match=r"not in the plan: c\.safetensors"):
        SafetensorsWriter(tmp_path, small_plan, files=["c.safetensors"])
    with pytest.raises(CheckpointError, match="complex128: safetensors cannot store"):
        SafetensorsWriter(tmp_path, {SINGLE: [TensorInfo("w", (1,), torch.complex128, "")]})
    assert files_of(tmp_path) == []
