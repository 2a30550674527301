"""`tests/ranks.py` itself: results in order, every failure reported, nothing left running."""

import gc
import os
import signal
import subprocess
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from megatron.bridge import runtime
from megatron.bridge.transport import process_groups
from tests.ranks import RankFailure, run_ranks


def whoami(offset: int) -> tuple[int, int, torch.Tensor]:
    total = torch.tensor([process_groups.rank() + offset])
    dist.all_reduce(total)
    return process_groups.rank(), process_groups.world_size(), total


def test_results_come_back_in_rank_order():
    assert run_ranks(whoami, 3, 10) == [(rank, 3, torch.tensor([33])) for rank in range(3)]


def test_ranks_do_not_mind_what_the_parent_has_started():
    process_groups.initialize()
    try:
        (torch.ones(200, 200, requires_grad=True) @ torch.ones(200, 200)).sum().backward()
        dist.all_reduce(torch.ones(1))
        for _ in range(5):
            assert [result[2].item() for result in run_ranks(whoami, 2, 0, tp=2)] == [1, 1]
        assert (process_groups.rank(), process_groups.world_size()) == (0, 1)
        dist.all_reduce(torch.ones(1))
    finally:
        process_groups.destroy()


def test_ranks_do_not_collect_what_the_parent_left_behind(tmp_path):
    """A process group's destructor joins its threads, which a fork does not have."""

    def collect() -> bool:
        gc.collect()
        return True

    gc.disable()
    try:
        garbage = [dist.ProcessGroupGloo(dist.FileStore(str(tmp_path / "store"), 1), 0, 1)]
        garbage.append(garbage)
        del garbage
        assert run_ranks(collect, 1) == [True]
    finally:
        gc.enable()
        gc.collect()


def test_ranks_do_not_throw_out_what_the_parent_has_cached(tmp_path):
    """The same destructor, of a group of a module that is a key of a cache."""
    runtime.enter()
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    def fill() -> bool:
        rotary = RotaryEmbedding(8, rotary_percent=1.0)
        return all(len(rotary(length)) == length for length in range(1, 40))

    rotary = RotaryEmbedding(8, rotary_percent=1.0)
    rotary.cp_group = dist.ProcessGroupGloo(dist.FileStore(str(tmp_path / "store"), 1), 0, 1)
    rotary(4)
    del rotary
    assert run_ranks(fill, 1) == [True]


def test_an_exception_is_raised_here_with_its_traceback():
    def fail():
        if process_groups.rank() == 1:
            raise ZeroDivisionError("of all things")
        dist.barrier()

    with pytest.raises(RankFailure, match=r"rank 1 of 2 failed:(.|\n)*in fail(.|\n)*ZeroDivisionError: of all things"):
        run_ranks(fail, 2)


def test_a_death_is_reported():
    def die():
        if process_groups.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(RankFailure, match="rank 0 of 2 died with exit code -9"):
        run_ranks(die, 2)


def test_a_hanging_rank_is_killed(tmp_path):
    def hang():
        (tmp_path / str(process_groups.rank())).write_text(str(os.getpid()))
        if process_groups.rank() == 0:
            (tmp_path / "2").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            time.sleep(600)

    with pytest.raises(
        RankFailure, match=r"rank\(s\) \[0, 1\] of 2 hang(.|\n)*rank 0:(.|\n)*in hang(.|\n)*rank 1:(.|\n)*in barrier"
    ):
        run_ranks(hang, 2, patience=2)
    for name in "012":  # the ranks, and what one of them has started
        pid = int((tmp_path / name).read_text())
        deadline = time.monotonic() + 10
        while (running := is_running(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
