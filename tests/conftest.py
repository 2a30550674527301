"""Every test runs offline, on the CPU unless `--run-gpu` is given, with one thread per process (ranks are forked)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# compressed-tensors compiles some of its functions. Of a process that has compiled one, forked children crash.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import hypothesis
import pytest
import torch

from tests import gpu

torch.set_num_threads(1)

_DEVICES, _SELECTION = pytest.StashKey[int](), pytest.StashKey[str]()

# The same examples in every run, and no limit on the time of one: machines are slow at times.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


# What helpers assert is explained as in tests.
pytest.register_assert_rewrite("tests.bridge_suite", "tests.gradients", "tests.parity")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-proof", action="store_true", help="write what the parity suite proves into the package")
    parser.addoption("--run-gpu", action="store_true", help="run the cases on ranks on CUDA devices, proofs included")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if config.getoption("--run-gpu"):
        config.option.numprocesses = 0  # the devices are for the ranks of one case at a time


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--run-gpu"):
        config.stash[_DEVICES] = gpu.num_devices()
        if config.option.markexpr == "not proof":  # the default
            config.option.markexpr = ""
    else:
        gpu.use_no_device()
    if config.getoption("--record-proof") and not hasattr(config, "workerinput"):  # not on a worker of pytest-xdist
        from megatron.bridge.models.proven import FAMILIES
        from tests.parity import all_cases
        from tests.proof_record import ProofRecorder

        config.pluginmanager.register(ProofRecorder(FAMILIES, all_cases()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _DEVICES in config.stash:
        items[:], left_out, config.stash[_SELECTION] = gpu.select(items, config.stash[_DEVICES])
        config.hook.pytest_deselected(items=left_out)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return [config.stash[_SELECTION]] if _SELECTION in config.stash else []
