"""The command line as users run it: processes that start their own ranks, on a tiny model."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from megatron.bridge.verification import compare_folders
from tests.programs import run_forked, run_started
from tests.tiny_folder import save_tiny_folder

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(params=["forked", pytest.param("started", marks=pytest.mark.proof)])
def megatron_bridge(request: pytest.FixtureRequest) -> Run:
    """Runs a command in a process of its own."""
    return partial({"forked": run_forked, "started": run_started}[request.param], "-m", "megatron.bridge")


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "hf", "Qwen3ForCausalLM", chat=True)


def test_import_generate_export(megatron_bridge, hf_folder, tmp_path):
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    result = megatron_bridge("import", hf_folder, checkpoint)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Imported {hf_folder} to {checkpoint}\n")
    assert result.stderr == ""

    result = megatron_bridge("generate", checkpoint, "--prompt", "Tokyo", "--max-new-tokens", 8, "--tp", 2, "--json")
    assert result.returncode == 0, result.stderr
    on_two_ranks = json.loads(result.stdout)
    assert result.stderr == ""
    result = megatron_bridge("generate", hf_folder, "--prompt", "Tokyo", "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    assert result.stdout == on_two_ranks["text"] + "\n"
    assert result.stderr == ""

    result = megatron_bridge("export", checkpoint, exported)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert compare_folders(hf_folder, exported).passes
    assert (exported / "tokenizer.json").read_bytes() == (hf_folder / "tokenizer.json").read_bytes()


def test_two_parts_make_a_checkpoint_that_verifies(megatron_bridge, hf_folder, tmp_path):
    checkpoint, altered = tmp_path / "checkpoint", tmp_path / "altered"
    result = megatron_bridge("import", hf_folder, checkpoint, "--part", "1/2", "--memory", "1MB", "--threads", 1)
    assert result.returncode == 0, result.stderr
    assert "This part is done" in result.stdout
    assert not checkpoint.exists()
    result = megatron_bridge("import", hf_folder, checkpoint, "--part", "0/2", "--memory", "2MB", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["complete"]

    result = megatron_bridge("verify", checkpoint, hf_folder, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["passed"], found["differences"]) == (True, [])
    assert result.stderr == ""

    shutil.copytree(hf_folder, altered)
    weights = altered / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = megatron_bridge("verify", checkpoint, altered)
    assert result.returncode == 1
    assert "1 different" in result.stdout
    assert "1 of" in result.stdout


def test_roundtrip_on_two_tensor_parallel_ranks(hf_folder, tmp_path):
    """In processes that are started, in every run."""
    result = run_started(
        "-m", "megatron.bridge", "roundtrip", hf_folder, "--tp", 2, "--out", tmp_path / "out", "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["passed"], found["tp"], found["mismatches"]) == (True, 2, [])
    assert result.stderr == ""
    assert compare_folders(hf_folder, tmp_path / "out").passes


def test_compare_on_two_pipeline_stages(megatron_bridge, hf_folder):
    result = megatron_bridge("compare", hf_folder, "--pp", 2, "--max-new-tokens", 6)
    assert result.returncode == 0, result.stderr
    assert "TP=1 PP=2" in result.stdout
    assert result.stdout.count("✓") == 2
    assert "greedy tokens the same: 6 of 6" in result.stdout
    assert result.stderr == ""


def test_a_check_that_fails_on_two_ranks(megatron_bridge, hf_folder):
    result = megatron_bridge("compare", hf_folder, "--tp", 2, "--tolerance", 0, "--json")
    assert result.returncode == 1
    assert not json.loads(result.stdout)["passed"]
    assert result.stderr == ""


def test_an_error_on_three_ranks_is_one_message(megatron_bridge, hf_folder):
    result = megatron_bridge("compare", hf_folder, "--pp", 3)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "4 layers cannot be split over 3 pipeline stages" in result.stderr
