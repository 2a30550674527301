"""Starting ranks on this machine. Importing this module does not import torch.

A process of its own does the work: `python -m megatron.bridge.transport.launcher <number of ranks> <argv>`. It imports
torch, transformers and megatron-core once and forks the ranks, so that none of them spends seconds on that. Then it
serves the store through which they find each other, and waits for them.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType

from megatron.bridge import runtime
from megatron.bridge.errors import BridgeError
from megatron.bridge.runtime import startup

_HOST = "127.0.0.1"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Tells torch to ask the driver's library for devices: after a call of CUDA, no forked process could use one.
_NO_CUDA_CALL = "PYTORCH_NVML_BASED_CUDA_CHECK"
# Seconds that ranks have to say why they fail once one has failed, and to end when they are asked to.
_LAST_WORDS, _ENDING = 5, 30


def launch(argv: Sequence[str], num_ranks: int, env: Mapping[str, str] | None = None) -> int:
    """Runs `python argv...` on `num_ranks` ranks of this machine, in the environment of torchrun, and waits for them.

    When one rank fails, the others are ended. SIGINT and SIGTERM are passed on. As with torchrun, each rank computes
    with one thread unless OMP_NUM_THREADS says otherwise. For example: `launch(["train.py", "--tp", "2"], 2)`.

    Args:
        argv: what follows `python`: a script and its arguments, or `-m` and a module. Modules run in processes that
            are forked with megatron-core imported, where that is safe; scripts always in new ones.
        env: added to this process's environment.

    Returns:
        0 if every rank succeeded, else the exit code of the first that did not (128 + n if signal n ended it).
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **(env or {})}
    process = subprocess.Popen([sys.executable, "-m", __name__, str(num_ranks), *argv], env=environment)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handlers[number] = signal.signal(number, lambda signum, frame: process.send_signal(signum))
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _main(num_ranks: int, argv: list[str]) -> int:
    """Starts the ranks; returns their exit code, as `launch` does. In a rank, runs what it is for."""
    # While this process imports, there is nothing to clean up: a Ctrl-C just ends it, without a traceback.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    device = _import_engine() if argv[0] == "-m" and sys.platform == "linux" else None
    signal.signal(signal.SIGINT, handler)
    server = socket.create_server((_HOST, 0), backlog=num_ranks)
    port = server.getsockname()[1]
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until whoever is to receive them is there
    running = set()
    for rank in range(num_ranks):
        if (pid := os.fork()) == 0:
            server.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return _run_rank(rank, num_ranks, port, argv, device)
        running.add(pid)
    last_words = 0
    try:
        for number in _SIGNALS:
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        from torch.distributed import TCPStore

        # Has a thread, so it comes after the forks. Ranks that are faster wait in the queue of the socket.
        store = TCPStore(_HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
        code = _wait(running)
        last_words = _LAST_WORDS
        del store  # which was needed until now
        return code if code >= 0 else 128 - code
    finally:
        _end_ranks(running, last_words)


def _end(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:  # the terminal and `launch` may both send it
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _import_engine() -> str | None:
    """Imports what the ranks need; returns the kind of their device, `None` if they must not be forked from here."""
    was_set = _NO_CUDA_CALL in os.environ
    os.environ.setdefault(_NO_CUDA_CALL, "1")
    try:
        from megatron.bridge.runtime import capabilities  # which imports torch

        device = capabilities.device().type
        if device == "cuda":
            with warnings.catch_warnings():  # as the command line does
                warnings.simplefilter("ignore")
                startup.import_megatron_core()
        runtime.enter()
        with startup.lean_imports():
            import transformers.activations
            import transformers.configuration_utils
            import transformers.models  # noqa: F401
    except BridgeError:
        return None  # the ranks will say it
    finally:
        if not was_set:
            del os.environ[_NO_CUDA_CALL]
    return device if threading.active_count() == 1 else None


def _run_rank(rank: int, num_ranks: int, port: int, argv: list[str], device: str | None) -> int:
    """Runs `python argv...` as a rank: in this process, which was forked, or in its place."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ.update({name: str(number) for name, number in places.items()})
    os.environ.update(MASTER_ADDR=_HOST, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    if device is not None:
        from torch.cuda import _is_in_bad_fork

        if device == "cpu" or not _is_in_bad_fork():
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
            return 0
    os.execv(sys.executable, [sys.executable, *argv])


def _wait(running: set[int]) -> int:
    """Waits until a rank has failed or all have ended; returns the exit code of that one (-n for signal n), or 0."""
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if code := os.waitstatus_to_exitcode(status):
            return code
    return 0


def _end_ranks(running: set[int], last_words: int) -> None:
    """Ends the ranks that are still there after some seconds: politely, then at once."""
    for seconds, number in ((last_words, signal.SIGTERM), (_ENDING, signal.SIGKILL)):
        deadline = time.monotonic() + seconds
        while running and time.monotonic() < deadline:
            running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.02)
        for pid in running:
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2:]))
