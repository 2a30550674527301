"""Runs a function on several ranks, forked from this process so that no rank pays for importing megatron-core.

Ranks talk over gloo on the CPU, over NCCL where there is CUDA: what `capabilities` says.

Fork is safe here because this process computes with one thread (set before its first operation) and no rank destroys
one of its process groups: that would join a thread that only the parent has, and wait for ever. So ranks forget them
without destroying them, never collect the parent's garbage, and inherit no cache that throws out a module with groups.
`tests/conftest.py` does the first, then `forget_groups` and `_before_fork`.
"""

import contextlib
import faulthandler
import gc
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from megatron.bridge import runtime
from megatron.bridge.runtime import capabilities
from megatron.bridge.transport import process_groups

_inherited: list[Any] = []

# Seconds. A rank that hangs is known by what it does not do, however slow a loaded machine is: a rank that gets no CPU
# for a while is not one that waits for ever. `AGE` ends ranks whose parent was killed, and waits in collectives.
PATIENCE, MAX_CPU, AGE = 120, 600, 900


def _before_fork() -> None:
    """Hides all garbage from the collector, before the first Python code of a child could call it, and empties caches.

    Those of rotary embeddings hold their last 32 results, whose keys are modules.
    """
    loaded = sys.modules.get("megatron.core.models.common.embeddings.rotary_pos_embedding")
    classes = [loaded.RotaryEmbedding] if loaded else []
    while classes:
        rotary = classes.pop()
        classes += rotary.__subclasses__()
        for value in vars(rotary).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    gc.freeze()


os.register_at_fork(before=_before_fork, after_in_parent=gc.unfreeze)


class RankFailure(AssertionError):
    """A rank raised, died or did not end in time."""


def run_ranks(
    fn: Callable[..., Any], num_ranks: int, *args: Any, patience: float = PATIENCE, **layout: Any
) -> list[Any]:
    """Run `fn(*args)` on `num_ranks` ranks after `runtime.enter()` and `process_groups.initialize(**layout)`.

    Args:
        fn: any function; it and `args` are inherited by fork, so they need not be picklable.
        patience: seconds in which the ranks may do nothing until they are killed.
        **layout: `tp=2`, `pp=2`, `ep=2`, `seed=1`, ...

    Returns:
        Each rank's return value, in rank order (picklable; tensors are copied).

    Raises:
        RankFailure: with the traceback of the first rank that failed, or where each rank waits. All ranks are killed.
    """
    runtime.enter()
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(num_ranks):
            receiver, sender = context.Pipe(duplex=False)
            target = (rank, num_ranks, Path(folder), sender, layout, fn, args)
            process = context.Process(target=_rank_main, args=target)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, processes, Path(folder), patience)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with its children
                process.kill()
                process.join()
            for pipe in pipes:
                pipe.close()


def _collect(pipes: list, processes: list, folder: Path, patience: float) -> list[Any]:
    results: dict[int, Any] = {}
    since, used = time.monotonic(), 0.0
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = connection.wait(list(waiting), timeout=min(1, patience / 4))
        if not ready:
            cpu_seconds = sum(map(_cpu_seconds, processes))
            if cpu_seconds - used > 0.01 * patience:
                since, used = time.monotonic(), cpu_seconds
            if time.monotonic() - since > patience or cpu_seconds > MAX_CPU:
                stacks = "\n".join(_stack(rank, processes[rank].pid, folder) for rank in sorted(waiting.values()))
                raise RankFailure(
                    f"rank(s) {sorted(waiting.values())} of {len(pipes)} hang: {cpu_seconds:.1f} s of CPU used, "
                    f"next to nothing in the last {time.monotonic() - since:.0f} s. They are at:\n{stacks}"
                )
        for pipe in ready:
            rank = waiting[pipe]
            try:
                failed, payload = pickle.loads(pipe.recv_bytes())
            except EOFError:
                processes[rank].join(5)
                code = processes[rank].exitcode
                raise RankFailure(f"rank {rank} of {len(pipes)} died with exit code {code}") from None
            if failed:
                raise RankFailure(f"rank {rank} of {len(pipes)} failed:\n{payload}")
            results[rank] = payload
    return [results[rank] for rank in range(len(pipes))]


def _cpu_seconds(process: Any) -> float:
    """What the main threads of a rank and its children have used; other threads of gloo use some while they wait."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        rank = psutil.Process(process.pid)
        for member in [rank, *rank.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(
                    thread.user_time + thread.system_time for thread in member.threads() if thread.id == member.pid
                )
    return total


def _stack(rank: int, pid: int, folder: Path) -> str:
    """Where a rank is, as it says itself: the innermost frames, with the name of the collective that it waits in."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    path, end = folder / f"stack{rank}", time.monotonic() + 10
    while time.monotonic() < end and not (path.is_file() and path.stat().st_size):
        time.sleep(0.1)
    time.sleep(0.1)
    lines = path.read_text().splitlines() if path.is_file() else []
    return "\n".join([f"rank {rank}:", *lines[:40]])


def _rank_main(rank, num_ranks, folder, sender, layout, fn, args) -> None:
    stack = (folder / f"stack{rank}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack)  # says where a rank hangs
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(AGE)  # ends this rank even if the parent is killed
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        os.environ["LOCAL_RANK"] = os.environ["RANK"] = str(rank)
        os.environ["WORLD_SIZE"] = str(num_ranks)
        forget_groups()
        store = dist.FileStore(str(folder / "store"), num_ranks)
        patience = timedelta(seconds=AGE)
        device, backend = capabilities.device(), capabilities.distributed_backend()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.allow_tf32 = False  # what is compared is float32
        dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=patience)
        process_groups.initialize(**layout)
        message = pickle.dumps((False, fn(*args)))
        dist.barrier()  # a rank that leaves early would break the others' connections
    except BaseException:
        message = pickle.dumps((True, traceback.format_exc()))
    sender.send_bytes(message)
    sender.close()


def forget_groups() -> None:
    """Forget the parent's process groups, without destroying them: their threads are not in this process."""
    from megatron.core import parallel_state

    c10d = dist.distributed_c10d
    _inherited.extend([dict(c10d._world.pg_map), dict(vars(parallel_state))])  # keeps their destructors from running
    c10d._unregister_all_process_groups()
    c10d._update_default_pg(None)
    for registry in (
        c10d._world.pg_map,
        c10d._world.pg_names,
        c10d._world.pg_group_ranks,
        c10d._world.pg_backend_config,
        c10d._world.pg_to_tag,
        c10d._world.tags_to_pg,
    ):
        registry.clear()
    c10d._world.group_count = 0
    parallel_state.destroy_model_parallel()
