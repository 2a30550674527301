"""The command line as users run it: processes that start their own ranks, on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.bridge.verification import compare_folders
from tests.tiny_folder import save_tiny_folder

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def megatron_bridge(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron.bridge", *map(str, argv)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "hf", "Qwen3ForCausalLM", chat=True)


def test_import_generate_export(hf_folder, tmp_path):
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


def test_two_parts_make_a_checkpoint_that_verifies(hf_folder, tmp_path):
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
    result = megatron_bridge("roundtrip", hf_folder, "--tp", 2, "--out", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["passed"], found["tp"], found["mismatches"]) == (True, 2, [])
    assert result.stderr == ""
    assert compare_folders(hf_folder, tmp_path / "out").passes


def test_compare_on_two_pipeline_stages(hf_folder):
    result = megatron_bridge("compare", hf_folder, "--pp", 2, "--max-new-tokens", 6)
    assert result.returncode == 0, result.stderr
    assert "TP=1 PP=2" in result.stdout
    assert result.stdout.count("✓") == 2
    assert "greedy tokens the same: 6 of 6" in result.stdout
    assert result.stderr == ""


def test_a_check_that_fails_on_two_ranks(hf_folder):
    result = megatron_bridge("compare", hf_folder, "--tp", 2, "--tolerance", 0, "--json")
    assert result.returncode == 1
    assert not json.loads(result.stdout)["passed"]
    assert result.stderr == ""


def test_an_error_on_three_ranks_is_one_message(hf_folder):
    result = megatron_bridge("compare", hf_folder, "--pp", 3)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "4 layers cannot be split over 3 pipeline stages" in result.stderr
