"""Starting ranks on this machine. Importing this module does not import torch.

torchrun does the work, in a process of its own: `python -m megatron.bridge.transport.launcher <torchrun arguments>` is
torchrun, except that it exits with the code of the first rank that failed and leaves it to that rank to say why.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence


def launch(argv: Sequence[str], num_ranks: int, env: Mapping[str, str] | None = None) -> int:
    """Runs `python argv...` under torchrun, on `num_ranks` ranks of this machine, and waits for them.

    When one rank fails, torchrun ends the others. SIGINT and SIGTERM are passed on. As with torchrun, each rank
    computes with one thread unless OMP_NUM_THREADS says otherwise. For example: `launch(["train.py", "--tp", "2"], 2)`.

    Args:
        argv: what follows `python`: a script and its arguments, or `-m` and a module.
        env: added to this process's environment.

    Returns:
        0 if every rank succeeded, else the exit code of the first that did not (128 + n if signal n ended it).
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **(env or {})}
    torchrun = ["--standalone", "--nproc-per-node", str(num_ranks)]
    process = subprocess.Popen([sys.executable, "-m", __name__, *torchrun, *argv], env=environment)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda signum, frame: process.send_signal(signum))
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _torchrun(arguments: list[str]) -> int:
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    elastic = logging.getLogger("torch.distributed.elastic")  # it would report how each rank ended
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(_torchrun(sys.argv[1:]))
