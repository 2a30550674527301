import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.artifacts import copy_artifacts, save_config

COPIED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "modeling_strange.py",
]
LEFT_OUT = [
    "hf_quant_config.json",
    "quantize_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "optimizer.pt",
    "consolidated.00.pth",
    "model.gguf",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    ".gitattributes",
    "picture.png",
    "model.safetensors.partial",
    "adapter_config.json",
    "trainer_state.json",
    "training_args.bin",
    "random_states_0.pkl",
    "zero_to_fp32.py",
    "latest",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "onnx").mkdir()
    for name in [*COPIED, *LEFT_OUT, "additional_chat_templates/tools.jinja", "onnx/config.json"]:
        (source / name).write_bytes(name.encode() + b"\r\n\xff")
    return source


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_everything_but_weights_and_documents(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    written = copy_artifacts(folder, out)
    assert written == files_of(out) == sorted([*COPIED, "additional_chat_templates/tools.jinja"])
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in written)
    assert copy_artifacts(folder, out) == written


def test_a_given_config_replaces_the_source(folder: Path, tmp_path: Path, llama_folder: Path) -> None:
    config = AutoConfig.from_pretrained(llama_folder)
    config.num_hidden_layers = 7
    written = copy_artifacts(folder, tmp_path / "out", config)
    assert written.count("config.json") == 1
    config.save_pretrained(tmp_path / "expected")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "expected" / "config.json").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 7


def test_copying_onto_itself_changes_nothing(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    copy_artifacts(folder, folder)
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == before


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname"])
def test_links_leading_outside(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to(target)
    with pytest.raises(CheckpointError, match=rf"{folder}/vocab\.txt: a link that leads outside"):
        copy_artifacts(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.txt").exists()


def test_links_of_a_hub_snapshot_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert copy_artifacts(snapshot, tmp_path / "out") == ["config.json"]
    assert not (tmp_path / "out" / "config.json").is_symlink()

    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    (snapshot / "vocab.txt").symlink_to("../../refs/main")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: a link that leads outside"):
        copy_artifacts(snapshot, tmp_path / "out")


def test_links_in_the_output_folder_are_replaced(folder: Path, tmp_path: Path, llama_folder: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "vocab.json"):
        (out / name).symlink_to(blob)
    copy_artifacts(folder, out, AutoConfig.from_pretrained(llama_folder))
    assert blob.read_text() == "precious"
    assert (out / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        copy_artifacts(tmp_path / "absent", tmp_path / "out")


def test_custom_config_code_is_not_written_by_save_config(tmp_path: Path, llama_folder: Path) -> None:
    save_config(AutoConfig.from_pretrained(llama_folder), tmp_path / "new")
    assert files_of(tmp_path / "new") == ["config.json"]
