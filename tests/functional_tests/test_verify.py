"""`verify_checkpoints`: equal checkpoints of any form are equal; one flipped bit anywhere is found and named."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron.bridge import AutoBridge
from megatron.bridge.errors import CheckpointError, HubError, PlanError
from megatron.bridge.transport.torch_dist import TorchDistReader
from megatron.bridge.verification import verify_checkpoints
from tests.ranks import run_ranks
from tests.tiny_models import TinyModel

# All kinds of weights: biases, norms, a tied embedding with a vocabulary that TP=2 pads.
SMALL = {"num_hidden_layers": 2, "attention_bias": True, "vocab_size": 131, "hidden_size": 32, "intermediate_size": 48}
MODELS = {
    "untied": TinyModel("untied", "LlamaForCausalLM", SMALL),
    "tied": TinyModel("tied", "LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True}),
}
LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "tp2pp2": {"tp": 2, "pp": 2}}


def _save_live(folder: Path, layout: dict[str, int], out: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    bridge.save_megatron_model(provider.provide_distributed_model(wrap_with_ddp=False), out)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two models as HF folders, as imports, and as saved by megatron-core from several layouts."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, tiny in MODELS.items():
        tiny.save(root / name / "hf")
        AutoBridge.import_ckpt(root / name / "hf", root / name / "imported")
    for layout, sizes in LAYOUTS.items():
        num_ranks = sizes.get("tp", 1) * sizes.get("pp", 1)
        run_ranks(_save_live, num_ranks, root / "untied" / "hf", sizes, root / "untied" / layout, **sizes)
    return root


PAIRS = [("hf", "imported"), ("imported", "tp2pp2"), ("tp2", "pp2"), ("hf", "tp2"), ("pp2", "hf"), ("hf", "hf")]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_same_weights_in_any_form_are_equal(pair: tuple[str, str], checkpoints: Path) -> None:
    a, b = (checkpoints / "untied" / name for name in pair)
    found = verify_checkpoints(a, b)
    assert found.equal and found.differences == []
    with safe_open(checkpoints / "untied" / "hf" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        num_bytes = sum(file.get_tensor(name).nbytes for name in names)
    assert found.num_bytes == num_bytes
    if "hf" in pair:
        assert found.num_tensors == len(names)
    is_padded = [name.startswith("tp2") for name in pair]
    assert bool(found.ignored) == (is_padded[0] != is_padded[1])


def test_second_copies_of_tied_tensors_are_compared(checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "tied" / "hf"
    assert verify_checkpoints(source, checkpoints / "tied" / "imported").equal
    folder = shutil.copytree(source, tmp_path / "hf")
    with safe_open(source / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert verify_checkpoints(folder, checkpoints / "tied" / "imported").equal
    tensors["lm_head.weight"][7, 5] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (difference,) = verify_checkpoints(folder, checkpoints / "tied" / "imported").differences
    assert (difference.name, difference.kind) == ("lm_head.weight", "values")
    assert "1 of 4192 elements, first at [7, 5]" in difference.detail


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("rb+") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def _hf_places(folder: Path) -> Iterator[tuple[str, Path, int, int]]:
    """(name, file, position, size) of each tensor's bytes, from the header of the file alone."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            yield name, path, 8 + size + start, stop - start


def _stored_places(folder: Path) -> Iterator[tuple[str, Path, int, int]]:
    """The same for each chunk of a torch_dist checkpoint, found by its bytes."""
    folder = folder / "iter_0000000"
    reader = TorchDistReader(folder)
    for key, tensor in reader.tensors.items():
        for chunk in tensor.chunks:
            box = tuple((start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            data = reader.read(key, box).contiguous().numpy().tobytes()
            position = (folder / chunk.filename).read_bytes().index(data, chunk.offset)
            yield key, folder / chunk.filename, position, len(data)


@pytest.mark.parametrize("other", ["hf", "imported", "tp2"])
def test_a_flipped_bit_in_any_hf_tensor_is_found_and_named(other: str, checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "untied" / "hf", tmp_path / "hf")
    places = list(_hf_places(folder))
    assert len(places) == 29
    for index, (name, path, position, size) in enumerate(places):
        at, bit = position + (index * 7919) % size, index % 8
        _flip(path, at, bit)
        (difference,) = verify_checkpoints(folder, checkpoints / "untied" / other).differences
        assert (difference.name, difference.kind) == (name, "values")
        assert difference.detail.startswith("1 of ")
        _flip(path, at, bit)
    assert verify_checkpoints(folder, checkpoints / "untied" / other).equal


@pytest.mark.parametrize("other", ["hf", "imported", "tp2"])
@pytest.mark.parametrize("kind", ["imported", "tp2"])
def test_a_flipped_bit_in_any_stored_chunk_is_found(kind: str, other: str, checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "untied" / kind, tmp_path / "megatron")
    places = [place for place in _stored_places(folder) if place[3] > 64]
    assert len({key for key, *_ in places}) == 11
    for index, (key, path, position, size) in enumerate(places):
        # Of the vocabulary's last chunk, the last row (128 bytes) may be padding.
        at, bit = position + (index * 7919) % (size - 128 if "word" in key or "output" in key else size), index % 8
        _flip(path, at, bit)
        (difference,) = verify_checkpoints(checkpoints / "untied" / other, folder).differences
        assert difference.kind == "values"
        assert difference.detail.startswith("1 of ")
        if other != "hf":
            assert difference.name == key
        _flip(path, at, bit)
    assert verify_checkpoints(checkpoints / "untied" / other, folder).equal


def test_padding_rows(checkpoints: Path, tmp_path: Path) -> None:
    """Against a vocabulary they are noted; between two checkpoints, a row that is not zero is no padding."""
    folder = shutil.copytree(checkpoints / "untied" / "tp2", tmp_path / "megatron")
    places = [place for place in _stored_places(folder) if place[0] == "embedding.word_embeddings.weight"]
    _, path, position, size = places[-1]
    key = "embedding.word_embeddings.weight"
    assert verify_checkpoints(checkpoints / "untied" / "hf", folder).ignored[key] == (
        "1 row(s) of vocabulary padding, zero"
    )
    _flip(path, position + size - 1, 0)
    found = verify_checkpoints(checkpoints / "untied" / "hf", folder)
    assert found.equal and found.ignored[key] == "1 row(s) of vocabulary padding, not zero"
    for pair in ((checkpoints / "untied" / "pp2", folder), (folder, checkpoints / "untied" / "pp2")):
        (difference,) = verify_checkpoints(*pair).differences
        assert (difference.name, difference.kind) == (key, "shape")


def test_what_kind_of_difference(tmp_path: Path) -> None:
    nan, other_nan = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    a = {"same": nan, "nan": nan, "zero": torch.tensor(0.0), "gone": nan, "shape": torch.ones(2, 3), "dtype": nan}
    b = {"same": nan, "nan": other_nan, "zero": torch.tensor(-0.0), "new": nan, "shape": torch.ones(3, 2)}
    b["dtype"] = nan.view(torch.int32)
    many = torch.zeros(70, 100, dtype=torch.bfloat16)
    a["many"], b["many"] = many, many.clone()
    b["many"][31, 57:60] = 1.0
    for name, tensors in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = verify_checkpoints(tmp_path / "a", tmp_path / "b")
    assert not found.equal and found.num_tensors == 6
    assert {difference.name: (difference.kind, difference.detail) for difference in found.differences} == {
        "gone": ("missing in B", ""),
        "new": ("missing in A", ""),
        "shape": ("shape", "[2, 3] in A, [3, 2] in B"),
        "dtype": ("dtype", "torch.float32 in A, torch.int32 in B"),
        "nan": ("values", "1 of 1 elements, first at [0]: 0x7fc00000 in A, 0x7fc00001 in B"),
        "zero": ("values", "1 of 1 elements, first at []: 0x00000000 in A, 0x80000000 in B"),
        "many": ("values", "3 of 7000 elements, first at [31, 57]: 0x0000 in A, 0x3f80 in B"),
    }


def test_missing_and_other_dtypes_between_forms(checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "untied" / "hf"
    AutoBridge.import_ckpt(source, tmp_path / "half", torch_dtype=torch.bfloat16)
    found = verify_checkpoints(source, tmp_path / "half")
    assert {difference.kind for difference in found.differences} == {"dtype"} and len(found.differences) == 29
    folder = shutil.copytree(source, tmp_path / "hf")
    with safe_open(source / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["extra"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    found = verify_checkpoints(checkpoints / "untied" / "imported", folder)
    assert {(difference.name, difference.kind) for difference in found.differences} == {
        ("extra", "missing in A"),
        ("model.norm.weight", "missing in B"),
    }


def test_checkpoints_of_different_models(checkpoints: Path) -> None:
    a, b = checkpoints / "untied" / "imported", checkpoints / "tied" / "imported"
    (missing, *others) = verify_checkpoints(a, b).differences
    assert (missing.name, missing.kind) == ("output_layer.weight", "missing in B")
    assert all(difference.kind == "values" for difference in others)


def test_which_config_says_how_they_correspond(checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "untied" / "hf"
    folder = shutil.copytree(checkpoints / "untied" / "tp2", tmp_path / "megatron")
    shutil.rmtree(folder / "iter_0000000" / "tokenizer")
    assert verify_checkpoints(folder, source).equal
    weights = shutil.copytree(source, tmp_path / "hf")
    (weights / "config.json").unlink()
    with pytest.raises(CheckpointError, match="give a bridge"):
        verify_checkpoints(folder, weights)
    bridge = AutoBridge.from_hf_pretrained(source)
    assert verify_checkpoints(folder, weights, bridge=bridge).equal
    (folder / "iter_0000000" / "run_config.yaml").unlink()  # as megatron-core alone saves it
    assert verify_checkpoints(folder, weights, bridge=bridge).equal


def test_a_checkpoint_of_another_size_than_its_model(checkpoints: Path, tmp_path: Path) -> None:
    """Larger weights than the model's must not be read as if their corners were the model's weights."""
    folder = shutil.copytree(checkpoints / "untied" / "imported", tmp_path / "megatron")
    path = folder / "iter_0000000" / "run_config.yaml"
    text = path.read_text()
    assert "ffn_hidden_size: 48" in text
    path.write_text(text.replace("ffn_hidden_size: 48", "ffn_hidden_size: 40"))
    with pytest.raises(PlanError, match=r"linear_fc1\.weight: expected \[2, 80, 32\], found \[2, 96, 32\]"):
        verify_checkpoints(checkpoints / "untied" / "hf", folder)
    bridge = AutoBridge.from_hf_pretrained(checkpoints / "untied" / "hf")
    with pytest.raises(PlanError, match=r"linear_fc1\.weight: expected \[2, 80, 32\], found \[2, 96, 32\]"):
        bridge.export_ckpt(folder, tmp_path / "out")


def test_what_is_no_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "untied" / "hf"
    with pytest.raises(CheckpointError, match="neither a Hugging Face folder"):
        verify_checkpoints(source, tmp_path)
    both = shutil.copytree(checkpoints / "untied" / "imported", tmp_path / "both")
    shutil.copy(source / "model.safetensors", both)
    with pytest.raises(CheckpointError, match="both a Hugging Face folder"):
        verify_checkpoints(both, source)
    with pytest.raises(HubError, match="no such folder"):
        verify_checkpoints(source, "nobody/nothing")


def _peak_anonymous_bytes(work: Any) -> int:
    """How far the process's anonymous memory rises while `work` runs."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - before


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        tensors = {f"w{index}": torch.full((4096, 8192), value, dtype=torch.bfloat16) for index in range(2)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        del tensors
    found = []
    peak = _peak_anonymous_bytes(lambda: found.append(verify_checkpoints(tmp_path / "a", tmp_path / "b")))
    assert [difference.kind for difference in found[0].differences] == ["values"] * 2
    assert peak < 64 * 2**20, f"{peak / 2**20:.0f} MiB for 2 checkpoints of 128 MiB"
