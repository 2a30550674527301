"""`pytest --run-gpu`: the cases that compare on ranks, each rank on a CUDA device of this machine instead of the CPU.

What they compute on follows from `capabilities.device()`, as everywhere. Here it is only said whether there are
devices, and which cases have enough of them.
"""

import os
from collections.abc import Sequence

import pytest
import torch

from megatron.bridge.runtime import capabilities

SETTING = "CUDA_VISIBLE_DEVICES"


def use_no_device() -> None:
    """Hides CUDA devices from this process and those that it starts: without the option, tests run on the CPU."""
    os.environ[SETTING] = ""


def num_devices() -> int:
    """How many CUDA devices there are.

    Raises:
        pytest.UsageError: there is none.
    """
    # Asked of the driver alone: a process that has started CUDA cannot fork ranks that use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if capabilities.has_cuda():
        return torch.cuda.device_count()
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise pytest.UsageError(
        f"--run-gpu asks for a CUDA device, and there is none: torch {torch.__version__} ({built}) finds 0 devices "
        f"with {SETTING}={os.environ.get(SETTING, '(not set)')}. "
        "Run the same cases on the CPU, without --run-gpu, or on a machine with a CUDA device and torch for it."
    )


def select(items: Sequence[pytest.Item], devices: int) -> tuple[list[pytest.Item], list[pytest.Item], str]:
    """The tests to run on so many devices, those to leave out, and a line that says how many and why."""
    ranks = [next((mark.args[0] for mark in item.iter_markers("ranks")), None) for item in items]
    chosen = [item for item, number in zip(items, ranks, strict=True) if number is not None and number <= devices]
    left_out = [item for item, number in zip(items, ranks, strict=True) if number is None or number > devices]
    num_other = ranks.count(None)
    line = (
        f"--run-gpu: {len(chosen)} case{'s'[: len(chosen) != 1]} on {devices} CUDA device{'s'[: devices != 1]}; "
        f"left out: {len(left_out) - num_other} for lack of devices, {num_other} without ranks"
    )
    return chosen, left_out, line
