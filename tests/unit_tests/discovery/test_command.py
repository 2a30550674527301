"""The command in its own process: without torch, and with a single JSON object for machines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.bridge.discovery import inspect_model
from tests.programs import TIMEOUT

# Runs the command, then prints which of the slow modules were imported.
PROBE = """
import sys
from megatron.bridge.cli import main
code = main(["inspect", *sys.argv[1:]])
heavy = {"torch", "megatron.core", "transformers.models.auto.modeling_auto", "safetensors.torch"}
print(code, sorted(heavy & sys.modules.keys()))
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron.bridge", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def test_it_imports_no_torch(qwen3_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROBE, qwen3_folder, "--html", tmp_path / "page.html"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert "Next step: megatron-bridge import" in result.stdout.replace("\n", " ") and result.stderr == ""
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_it_says_what_the_library_says(qwen3_folder: Path) -> None:
    """Config classes are the same without torch, and with modules that are imported one by one."""
    result = run(qwen3_folder, "--json")
    assert json.loads(result.stdout) == inspect_model(qwen3_folder).to_dict()


def test_a_page_that_cannot_be_written(qwen3_folder: Path, tmp_path: Path) -> None:
    result = run(qwen3_folder, "--json", "--html", tmp_path / "no" / "page.html")
    assert result.returncode == 2 and "the page cannot be written here" in json.loads(result.stdout)["message"]


@pytest.mark.parametrize("name", ["none/such", ""])
def test_bad_input_is_one_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    result = run(name or tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
