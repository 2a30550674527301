"""Folders as tools write and users download them: what transformers loads is loaded, or refused with the next step."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron.bridge import AutoBridge
from megatron.bridge.discovery import inspect_model
from megatron.bridge.errors import BridgeError, CheckpointError, UnsupportedModelError
from megatron.bridge.inference.full_logits import full_logits
from tests.parity import build_on, changed_tensors
from tests.ranks import run_ranks
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS

TOKENS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder: Path, **values: Any) -> None:
    """Replaces fields of the config; `...` removes one."""
    path = folder / "config.json"
    merged = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not ...}))


def edit_names(folder: Path, rename: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def logits_on_a_rank(folder: Path) -> torch.Tensor:
    return full_logits(build_on(AutoBridge.from_hf_pretrained(folder), {}), TOKENS)


def loads_as_in_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    expected, tolerance = reference(model, TOKENS)
    [found] = run_ranks(logits_on_a_rank, 1, folder)
    assert (found - expected).abs().max().item() <= tolerance


def refusals(folder: Path, error_class: type[BridgeError] = CheckpointError) -> list[str]:
    """What is said when the folder is imported, and when it is to be loaded: the errors' messages."""
    said = []
    for use in (
        lambda: AutoBridge.import_ckpt(folder, folder.parent / "megatron"),
        lambda: AutoBridge.from_hf_pretrained(folder).to_megatron_provider(),
    ):
        with pytest.raises(error_class) as caught:
            use()
        said.append(str(caught.value))
    return said


def run_command_in(message: str) -> None:
    """Runs the command that a message quotes."""
    command = re.search(r'`python -c "(.+)"`', message)
    assert command, message
    subprocess.run([sys.executable, "-c", command[1]], check=True, capture_output=True, timeout=120)


# Configs


@pytest.mark.parametrize(
    "architectures", [..., None, [], ["LlamaModel"], ["LLaMAForCausalLM"], ["OtherModel", "LlamaForCausalLM"]], ids=str
)
def test_the_model_type_says_what_the_architectures_do_not(folder: Path, architectures: Any) -> None:
    edit_config(folder, architectures=architectures)
    loads_as_in_transformers(folder)
    assert inspect_model(folder).support.architecture == "LlamaForCausalLM"
    assert AutoBridge.can_handle(folder)
    AutoBridge.import_ckpt(folder, folder.parent / "megatron")
    AutoBridge.from_hf_pretrained(folder).export_ckpt(folder.parent / "megatron", folder.parent / "out")
    assert "LlamaForCausalLM" in json.loads((folder.parent / "out/config.json").read_text())["architectures"]


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "MyLlamaForCausalLM"])
def test_no_other_class_is_taken_for_the_causal_model(folder: Path, architecture: str) -> None:
    edit_config(folder, architectures=[architecture])
    assert all(architecture in message for message in refusals(folder, UnsupportedModelError))
    assert not AutoBridge.can_handle(folder)


LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 64, "factor": 32.0}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": ..., "rope_theta": 500.0},
        {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": None},
        {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": LINEAR},
        {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}},
        {
            "rope_parameters": ...,
            "rope_theta": 500.0,
            "rope_scaling": {**LLAMA3, "rope_type": "llama3", "type": "llama3"},
        },
        {"rope_parameters": ..., "rope_theta": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"dtype": ..., "torch_dtype": "float32"},
        {"dtype": ..., "torch_dtype": None},
        {"dtype": "float32", "torch_dtype": "bfloat16"},
        {"head_dim": None, "attention_bias": ..., "mlp_bias": ..., "pretraining_tp": 1, "use_cache": True},
        {"transformers_version": "4.31.0.dev0", "_name_or_path": "/home/me/llama"},
        {"pad_token_id": -1, "eos_token_id": [2, 3]},
    ],
    ids=str,
)
def test_configs_of_other_versions(folder: Path, values: dict[str, Any]) -> None:
    edit_config(folder, **values)
    loads_as_in_transformers(folder)


def test_a_config_without_a_dtype(folder: Path) -> None:
    """The dtype is that of the weights, as in transformers."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    edit_config(folder, dtype=...)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert AutoBridge.from_hf_pretrained(folder).to_megatron_provider().params_dtype == torch.bfloat16


# Files


def test_only_the_copy_of_a_tied_tensor(folder: Path) -> None:
    """What tools that store each tensor once may keep: the output layer, not the embedding."""
    TINY_MODELS["llama-tied"].save(folder)
    edit_names(folder, lambda name: name.replace("model.embed_tokens.", "lm_head."))
    loads_as_in_transformers(folder)
    AutoBridge.import_ckpt(folder, folder.parent / "megatron")
    AutoBridge.from_hf_pretrained(folder).export_ckpt(folder.parent / "megatron", folder.parent / "out")
    assert changed_tensors(folder, folder.parent / "out") == []
    edit_names(folder, lambda name: name.removeprefix("model."))
    loads_as_in_transformers(folder)


def test_files_beside_the_model(folder: Path) -> None:
    """What downloads, trainers and other formats leave in a model's folder changes nothing."""
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "original/consolidated.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({"tok_embeddings.weight": torch.ones(2)}, folder / name)
    for name in (
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "tf_model.h5",
        "consolidated.00.pth", "model.Q4_K_M.gguf", "zero_to_fp32.py", "latest", "global_step5/mp_rank_00_states.pt",
        ".cache/huggingface/download/model.safetensors.metadata", ".no_exist/abc/config.json", ".gitattributes",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    loads_as_in_transformers(folder)
    assert inspect_model(folder).problems == []


def test_links_into_the_hub_cache(folder: Path) -> None:
    """What `huggingface-cli download --local-dir` made of large files until 2024."""
    blob = folder.parent / "hub/models--org--name/blobs" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    loads_as_in_transformers(folder)


def test_shards_that_are_not_in_the_index(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model-00009-of-00009.safetensors")
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    loads_as_in_transformers(folder)


def test_shards_without_their_index(folder: Path) -> None:
    """More than transformers reads; a second copy in another format is not among them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder.parent / "whole.safetensors")
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors.index.json").unlink()
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    assert set(AutoBridge.from_hf_pretrained(folder).hf_pretrained.state) == set(
        load_file(folder.parent / "whole.safetensors")
    )
    assert inspect_model(folder).problems == []


def test_an_index_of_absent_shards_beside_the_whole_model(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"or remove the index if model\.safetensors is the model"):
        AutoBridge.import_ckpt(folder, folder.parent / "megatron")


# Folders that hold something else


def test_pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    before = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"x")
    for message in refusals(folder):
        assert re.search(r"only pickled weights \(pytorch_model\.bin\), which are never unpickled here", message)
    assert "pytorch_model.bin" in inspect_model(folder).problems[0]
    run_command_in(message)
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    loads_as_in_transformers(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # called by peft
def test_adapters(folder: Path) -> None:
    """An adapter alone, and beside a model's weights, where transformers would apply it."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapter = folder.parent / "adapter"
    model.save_pretrained(adapter)
    with pytest.raises(
        CheckpointError, match=rf"adapter: no config\.json.*a peft adapter of the model {folder}"
    ) as caught:
        AutoBridge.import_ckpt(adapter, folder.parent / "megatron")
    run_command_in(str(caught.value))
    loads_as_in_transformers(folder.parent / "adapter-merged")

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)
    with pytest.raises(CheckpointError, match=r"which transformers would apply.*remove adapter_config\.json"):
        AutoBridge.import_ckpt(folder, folder.parent / "megatron")
    assert "a peft adapter" in inspect_model(folder).problems[0]
    (folder / "model.safetensors").unlink()
    assert all("a peft adapter" in message for message in refusals(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["zero_to_fp32.py", "global_step5/x"],
            r"DeepSpeed's partitions.*python zero_to_fp32\.py \. \. --safe_serialization",
        ),
        (["pytorch_model_fsdp_0/.metadata"], r"FSDP's shards.*accelerate merge-weights \S+/pytorch_model_fsdp_0 "),
        (["tiny.Q4_K_M.gguf"], r"GGUF weights \(tiny\.Q4_K_M\.gguf\).*gguf_file='tiny\.Q4_K_M\.gguf'"),
        (["epoch.ckpt"], r"only pickled weights \(epoch\.ckpt\), under names that transformers does not read either"),
        (["original/consolidated.00.pth", "README.md"], r"does not read \(consolidated\.00\.pth\)\. Fetch the model"),
        (["consolidated.safetensors"], r"does not read \(consolidated\.safetensors\)"),
        (["tf_model.h5"], r"does not read \(tf_model\.h5\)"),
        (["checkpoint-90/config.json", "checkpoint-500/config.json"], r"such as \S+/checkpoint-500\."),
        (["latest_checkpointed_iteration.txt"], r"a Megatron checkpoint.*megatron-bridge export"),
        (["training_args.bin", "optimizer.pt"], "no weights"),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_config", [True, False])
def test_other_folders(folder: Path, files: list[str], message: str, has_config: bool) -> None:
    (folder / "model.safetensors").unlink()
    if not has_config:
        (folder / "config.json").unlink()
        message = message if message != "no weights" else "Give the folder that `save_pretrained` wrote"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    for said in refusals(folder):
        assert re.search(message, said), said


def test_inspection_of_names_in_memory(folder: Path) -> None:
    """The command, whose process has no torch, asks another for transformers' renaming."""
    TINY_MODELS["mixtral"].hf_model().save_pretrained(folder, save_original_format=False)
    command = [sys.executable, "-c", "from megatron.bridge.cli import main; main()", "inspect", str(folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "MixtralBridge has a rule for every tensor" in result.stdout


def test_the_entry_of_a_model_in_the_hub_cache(folder: Path) -> None:
    entry = folder.parent / "models--org--name"
    shutil.copytree(folder, entry / "snapshots" / "abc123")
    with pytest.raises(CheckpointError, match=rf"such as {entry}/snapshots/abc123\."):
        AutoBridge.from_hf_pretrained(entry)


def test_placeholders_of_zero_3(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: torch.empty(0) for name in load_file(path)}, path, metadata={"format": "pt"})
    with pytest.raises(BridgeError, match=r"tensors without elements.*ZeRO-3.*zero_to_fp32\.py"):
        AutoBridge.import_ckpt(folder, folder.parent / "megatron")
