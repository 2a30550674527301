"""A conversion of much more than the memory leaves the page cache to other programs."""

import os
import re
from pathlib import Path

import pytest

from megatron.bridge import AutoBridge
from megatron.bridge.verification import verify_checkpoints
from tests.tiny_folder import save_tiny_folder


def mapped_bytes(path: Path) -> int:
    """How much of a file's memory maps in this process has pages (from /proc/self/smaps)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("is_large", [False, True])
def test_sources_are_released(is_large, tmp_path, monkeypatch):
    weights = save_tiny_folder(tmp_path / "hf", "LlamaForCausalLM") / "model.safetensors"
    if is_large:
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1}.__getitem__)
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.write_megatron_checkpoint(tmp_path / "megatron")
    assert (mapped_bytes(weights) == 0) == is_large
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert (mapped_bytes(weights) == 0) == is_large
    assert verify_checkpoints(tmp_path / "hf", tmp_path / "out").equal
