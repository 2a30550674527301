"""`--run-gpu`: without a device it is an error, and with too few of them the cases that need more are left out."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.bridge.runtime import capabilities
from tests import gpu
from tests.programs import TIMEOUT


def test_without_a_device_the_run_stops() -> None:
    command = [sys.executable, "-m", "pytest", "--run-gpu", "tests/functional_tests/models/llama", "-v"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, gpu.SETTING: ""}
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"ERROR: --run-gpu asks for a CUDA device, and there is none: torch {torch.__version__} (")
    assert line.endswith("without --run-gpu, or on a machine with a CUDA device and torch for it.")
    assert "PASSED" not in result.stdout


def test_the_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    monkeypatch.setattr(capabilities, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpu.num_devices() == 3
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def _item(*ranks: int) -> Any:
    return SimpleNamespace(iter_markers=lambda name: [pytest.mark.ranks(number).mark for number in ranks])


def test_cases_that_need_more_devices_are_left_out() -> None:
    one, two, four, other = _item(1), _item(2), _item(4), _item()
    chosen, left_out, line = gpu.select([two, one, other, four], 1)
    assert (chosen, left_out) == ([one], [two, other, four])
    assert line == "--run-gpu: 1 case on 1 CUDA device; left out: 2 for lack of devices, 1 without ranks"
    chosen, left_out, line = gpu.select([two, one, other, four], 2)
    assert (chosen, left_out) == ([two, one], [other, four])
    assert line == "--run-gpu: 2 cases on 2 CUDA devices; left out: 1 for lack of devices, 1 without ranks"


def test_without_the_option_devices_are_hidden() -> None:
    assert os.environ[gpu.SETTING] == ""
