"""A model of the hub is read without its weights: the server's log shows what was requested."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny_models import TINY_MODELS

REPO = "org/name"


def inspect(hub: HubServer | str, home: Path, *arguments: str, **environment: str) -> dict:
    """The command's JSON: a report, or an error."""
    endpoint = hub if isinstance(hub, str) else hub.url
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    variables = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "megatron.bridge", "inspect", REPO, "--json", *arguments],
        env=clean | variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in several files, among files that must not be requested."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    TINY_MODELS["qwen3-moe"].hf_model().save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer.model", "modeling_strange.py", "pytorch_model.bin", "README.md"):
        (folder / name).write_text("{}")
    shutil.copy(next(folder.glob("model-*.safetensors")), folder / "consolidated.safetensors")
    return folder


def header_sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            sizes[path.name] = 8 + int.from_bytes(file.read(8), "little")
    return sizes


def check_log(hub: HubServer, folder: Path) -> set[str]:
    """Checks that only JSON files and whole headers were requested; returns the names of the weight files."""
    headers = header_sizes(folder)
    ends: dict[str, int] = {}
    for name, _, end in hub.sent:
        if name.endswith(".safetensors"):
            ends[name] = max(end, ends.get(name, 0))
        else:
            assert name in ("config.json", "model.safetensors.index.json")
    assert all(end == headers[name] for name, end in ends.items())
    assert all((folder / name).stat().st_size > end for name, end in ends.items())
    return set(ends)


def test_only_json_files_and_headers_are_requested(repository: Path, tmp_path: Path) -> None:
    with HubServer(repository, REPO) as hub:
        report = inspect(hub, tmp_path)
    read = check_log(hub, repository)
    assert len(read) > 3 and read == {path.name for path in repository.glob("model-*.safetensors")}
    assert not list(tmp_path.rglob("*.safetensors"))
    assert report["source"] == "hub id" and report["support"]["bridge"] == "Qwen3MoeBridge"
    local = TINY_MODELS["qwen3-moe"].hf_model()
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in local.parameters())


def test_one_weight_file_without_an_index(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    shutil.copy(tmp_path / "hf" / "model.safetensors", tmp_path / "hf" / "consolidated.safetensors")
    with HubServer(tmp_path / "hf", REPO) as hub:
        report = inspect(hub, tmp_path / "cache")
    assert check_log(hub, tmp_path / "hf") == {"model.safetensors"}
    assert report["next_step"] == f"megatron-bridge import {REPO} OUT"


def test_offline_reads_what_is_in_the_cache(repository: Path, tmp_path: Path) -> None:
    with HubServer(repository, REPO) as hub:
        inspect(hub, tmp_path)
    report = inspect("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert report["support"]["bridge"] == "Qwen3MoeBridge" and report["support"]["unmatched"] == {}
    assert "weight files are absent" in report["problems"][0]
    assert report["parameters"]["num_tensors"] == 0


def test_a_server_that_sends_whole_files_is_refused(repository: Path, tmp_path: Path) -> None:
    with HubServer(repository, REPO, ignores_ranges=True) as hub:
        report = inspect(hub, tmp_path)
    assert report["error"] == "HubError" and "Download the model, and inspect the folder" in report["message"]


def test_a_name_that_is_nothing(repository: Path, tmp_path: Path) -> None:
    with HubServer(repository, "org/another") as hub:
        report = inspect(hub, tmp_path)
    assert report["error"] == "HubError" and "no such repository" in report["message"]
