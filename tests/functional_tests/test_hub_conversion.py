"""A hub id converts like a folder, from a hub-compatible server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.parity import changed_tensors
from tests.tiny_models import TINY_MODELS

CONVERT = """
import sys
from megatron.bridge import AutoBridge, BridgeError
try:
    AutoBridge.import_ckpt(sys.argv[1], sys.argv[2])
    AutoBridge.from_hf_pretrained(sys.argv[1]).export_ckpt(sys.argv[2], sys.argv[3])
except BridgeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def convert(hub: HubServer, folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CONVERT, hub.repo_id, str(folder / "megatron"), str(folder / "out")]
    return subprocess.run(command, env=clean | hf, capture_output=True, text=True, timeout=120)


def serve(tmp_path: Path, **switches: Any) -> HubServer:
    TINY_MODELS["llama-tied"].save(tmp_path / "hf")
    return HubServer(tmp_path / "hf", "org/tiny-llama", **switches)


def test_conversion_of_a_hub_id(tmp_path: Path) -> None:
    with serve(tmp_path) as hub:
        result = convert(hub, tmp_path)
        assert result.returncode == 0, result.stderr
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []
    source, exported = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "out"))
    assert source == exported


@pytest.mark.proof
def test_a_missing_weight_file(tmp_path: Path) -> None:
    with serve(tmp_path, missing_files=("model.safetensors",)) as hub:
        result = convert(hub, tmp_path)
    assert "HubError" in result.stderr and "org/tiny-llama" in result.stderr and "model.safetensors" in result.stderr
    assert not (tmp_path / "megatron").exists()


@pytest.mark.proof
def test_no_permission(tmp_path: Path) -> None:
    with serve(tmp_path, unauthorized="GatedRepo") as hub:
        result = convert(hub, tmp_path)
    assert "HubError" in result.stderr and "org/tiny-llama" in result.stderr and "HF_TOKEN" in result.stderr


@pytest.mark.proof
def test_a_cut_download(tmp_path: Path) -> None:
    with serve(tmp_path, cut_after_bytes=20_000) as hub:
        result = convert(hub, tmp_path)
    assert "HubError" in result.stderr and "org/tiny-llama" in result.stderr
    assert not (tmp_path / "megatron").exists()
