"""Every test runs offline, on the CPU, with one thread per process (`tests/ranks.py` forks)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# compressed-tensors compiles some of its functions. Of a process that has compiled one, forked children crash.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples in every run, and no limit on the time of one: machines are slow at times.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-proof", action="store_true", help="write what the parity suite proves into the package")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-proof") and not hasattr(config, "workerinput"):  # not on a worker of pytest-xdist
        from megatron.bridge.models.proven import PROVEN
        from tests.parity import all_cases
        from tests.proof_record import ProofRecorder

        config.pluginmanager.register(ProofRecorder(PROVEN, all_cases()))
