"""Programs, run as users run them: in a process of their own, and on ranks that they or torchrun start.

A process that Python starts imports torch, transformers and megatron-core for five seconds before it does anything. One
that is forked from here has them. So tests of what a program does run it forked; that the same holds for processes that
are started is a proof.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch

from megatron.bridge import runtime
from megatron.bridge.transport import launcher
from tests.ranks import forget_groups

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
# Seconds, for machines that are loaded: what takes longest takes 15 on one that is not.
TIMEOUT = 400


def run_started(*argv: object, num_ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python argv...`, under torchrun if `num_ranks` is given."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)] if num_ranks else []
    command = [sys.executable, *torchrun, *map(str, argv)]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=TIMEOUT)


def run_forked(*argv: object, num_ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    """The same in processes that are forked from this one."""
    runtime.enter()
    words = [str(word) for word in argv]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"

        def main() -> int:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            launcher.launch = _launch  # in the child alone
            os.environ.update(ENVIRONMENT)
            return _launch(words, num_ranks) if num_ranks else _python(words)

        process = _fork(main)
        process.join(TIMEOUT)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _launch(argv: Sequence[str], num_ranks: int, env: Mapping[str, str] | None = None) -> int:
    """What `launcher.launch` does, with ranks that are forked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(env or {})}

    def main(rank: int) -> int:
        os.environ.update({name: str(value) for name, value in shared.items()}, RANK=str(rank), LOCAL_RANK=str(rank))
        return _python(argv)

    running = [_fork(partial(main, rank), leads=False) for rank in range(num_ranks)]
    while running:
        connection.wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode:
                for other in running:  # which may be about to say why
                    other.join(10)
                    other.kill()
                return process.exitcode if process.exitcode > 0 else 128 - process.exitcode
    return 0


def _fork(main: Callable[[], int], leads: bool = True) -> Any:
    """A process that ends with the exit code that `main` returns; it leads a group, to be ended with its children."""

    def run() -> None:
        if leads:
            os.setpgid(0, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TIMEOUT + 5)  # ends this process even if the parent is killed
        torch.set_num_threads(1)
        forget_groups()
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def _python(argv: Sequence[str]) -> int:
    """Runs a script, or `-m` and a module, as the main program; its exit code."""
    is_module = argv[0] == "-m"
    name, sys.argv = (argv[1], list(argv[1:])) if is_module else (argv[0], list(argv))
    try:
        if is_module:
            if not hasattr(sys.modules.get(name), "__path__"):
                sys.modules.pop(name, None)  # as in a process that has not imported it
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
