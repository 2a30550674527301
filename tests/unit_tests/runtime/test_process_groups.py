"""Starting, changing and ending the process groups; the launcher."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron.bridge import runtime
from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.transport import process_groups
from tests.programs import TIMEOUT
from tests.ranks import run_ranks
from tests.unit_tests.runtime import tiny_gpt


@pytest.fixture
def alone():
    """This process, without process groups before and after."""
    runtime.enter()
    process_groups.destroy()
    yield
    process_groups.destroy()


def test_before_anything_is_started(alone):
    assert not process_groups.is_initialized()
    assert (process_groups.rank(), process_groups.world_size()) == (0, 1)
    assert process_groups.broadcast_object({"a": 1}) == {"a": 1}
    assert process_groups.all_gather_object("x") == ["x"]
    process_groups.barrier()
    process_groups.destroy()


def test_a_single_rank_needs_no_launcher(alone):
    process_groups.initialize()
    assert process_groups.is_initialized()
    assert parallel_state.model_parallel_is_initialized()
    assert (process_groups.rank(), process_groups.world_size()) == (0, 1)
    assert process_groups.broadcast_object([1]) == [1]
    assert process_groups.all_gather_object(1) == [1]
    process_groups.destroy()
    assert not process_groups.is_initialized()
    assert not parallel_state.model_parallel_is_initialized()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tp": 2}, "tp=2 * pp=1 * cp=1 = 2 does not divide 1"),
        ({"tp": 2, "pp": 3, "cp": 5}, "tp=2 * pp=3 * cp=5 = 30 does not divide 1"),
        ({"ep": 4}, "etp=1 * ep=4 * pp=1 = 4 does not divide 1"),
        ({"etp": 2, "ep": 2}, "etp=2 * ep=2 * pp=1 = 4 does not divide 1"),
        ({"vpp": 2}, "vpp=2 needs pp > 1"),
        ({"tp": 0}, "tensor_model_parallel_size=0 is not a positive number"),
    ],
)
def test_a_layout_that_does_not_fit_is_an_error(alone, layout, message):
    with pytest.raises(ParallelLayoutError) as error:
        process_groups.initialize(**layout)
    assert str(error.value).startswith("parallel layout on 1 rank(s): ")
    assert message in str(error.value)
    assert "torchrun --nproc-per-node" in str(error.value)
    assert not process_groups.is_initialized()


def sizes() -> tuple[int, ...]:
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
    )


def test_the_same_layout_changes_nothing_and_another_replaces_it():
    def change():
        assert sizes() == (2, 1, 1, 1)
        group = parallel_state.get_tensor_model_parallel_group()
        torch.rand(3)
        generator = torch.get_rng_state()
        process_groups.initialize(tp=2)
        assert parallel_state.get_tensor_model_parallel_group() is group
        assert torch.equal(torch.get_rng_state(), generator)
        num_groups = len(dist.distributed_c10d._world.pg_map)

        seen, groups = [], []
        for layout in ({"pp": 2}, {"ep": 2}, {}, {"tp": 2, "order": "tp-cp-ep-pp-dp"}, {"tp": 2}):
            process_groups.initialize(**layout)
            seen.append(sizes())
            groups.append(parallel_state.get_tensor_model_parallel_group())
            total = torch.ones(1)
            dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
            assert total.item() == parallel_state.get_model_parallel_group().size()
        assert groups[3] is not groups[4]  # the same sizes, but another order
        assert len(dist.distributed_c10d._world.pg_map) == num_groups  # nothing is left of the others
        return seen

    assert run_ranks(change, 2, tp=2) == [[(1, 2, 1, 1), (1, 1, 2, 2), (1, 1, 1, 2), (2, 1, 1, 1), (2, 1, 1, 1)]] * 2


def test_state_that_the_caller_made_is_kept():
    def adopt():
        process_groups.destroy()
        process_groups._init_process_group(None)
        parallel_state.initialize_model_parallel(expert_model_parallel_size=1)
        get_cuda_rng_tracker().reset()
        group = parallel_state.get_tensor_model_parallel_group()
        process_groups.initialize()
        assert parallel_state.get_tensor_model_parallel_group() is group
        tiny_gpt.dropout_mask()  # the generators were not seeded, and are now

    run_ranks(adopt, 1)


def test_the_seed():
    def draw():
        draws = [torch.rand(1).item()]
        for seed in (5, 6, 5):
            process_groups.initialize(pp=2, seed=seed)
            draws.append(torch.rand(1).item())
        return draws

    first, second = run_ranks(draw, 2, pp=2, seed=5)
    assert first[0] != first[2]
    assert first[0] == first[3]
    assert first[1] != first[0]  # the same seed again: the generator goes on
    assert not set(first) & set(second)  # stages start from different weights


def test_objects_travel():
    def send():
        rank = process_groups.rank()
        process_groups.barrier()
        return process_groups.broadcast_object({"from": rank}, src=1), process_groups.all_gather_object(
            (rank, "x" * rank)
        )

    assert run_ranks(send, 2) == [({"from": 1}, [(0, ""), (1, "x")])] * 2


def script(tmp_path, body: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body))
    return str(path)


@pytest.mark.proof  # as is every command that starts its ranks, and one of these is in every run
def test_launched_ranks_form_the_layout(tmp_path):
    path = script(
        tmp_path,
        """
        import os, pathlib, sys
        from megatron.bridge import runtime
        from megatron.bridge.transport import process_groups
        runtime.enter()
        assert process_groups.launched_by_torchrun()
        process_groups.initialize(tp=2)
        text = f"{process_groups.all_gather_object(process_groups.rank())} {os.environ['OMP_NUM_THREADS']}"
        pathlib.Path(sys.argv[1], f"rank{process_groups.rank()}").write_text(f"{text} {os.environ['EXTRA']}")
        process_groups.destroy()
        """,
    )
    assert not process_groups.launched_by_torchrun()
    assert process_groups.launch([path, str(tmp_path)], 2, env={"EXTRA": "yes"}) == 0
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["[0, 1] 1 yes"] * 2


@pytest.mark.proof
def test_ranks_of_a_module_start_with_megatron_core(tmp_path, monkeypatch):
    script(
        tmp_path,
        """
        import os, pathlib, signal, sys
        found = "megatron.core" in sys.modules, "torch._dynamo" in sys.modules, __name__, sys.argv[1:]
        from megatron.bridge.transport import process_groups
        process_groups.initialize(tp=2)
        ranks = process_groups.all_gather_object(process_groups.rank())
        pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(repr((*found, ranks)))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGKILL) if process_groups.rank() == 1 else process_groups.destroy()
        """,
    )
    (tmp_path / "script.py").rename(tmp_path / "a_rank_module.py")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert process_groups.launch(["-m", "a_rank_module", str(tmp_path)], 2) == 128 + signal.SIGKILL
    expected = repr((True, False, "__main__", [str(tmp_path)], [0, 1]))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2


def test_a_failing_rank_ends_the_launch(tmp_path):
    path = script(
        tmp_path,
        """
        import os, sys, time
        time.sleep(100) if os.environ["RANK"] == "0" else sys.exit(3)
        """,
    )
    start = time.monotonic()
    assert process_groups.launch([path], 2) == 3
    assert time.monotonic() - start < 60


def test_a_signal_reaches_the_ranks(tmp_path):
    path = script(
        tmp_path,
        f"""
        import os, pathlib, time
        pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(str(os.getpid()))
        time.sleep(100)
        """,
    )
    code = f"from megatron.bridge.transport.process_groups import launch; raise SystemExit(launch([{path!r}], 2))"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    try:
        files = [tmp_path / str(rank) for rank in range(2)]
        deadline = time.monotonic() + TIMEOUT
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(TIMEOUT) != 0
        for file in files:
            with pytest.raises(ProcessLookupError):
                os.kill(int(file.read_text()), 0)
    finally:
        launcher.kill()
        launcher.wait()
