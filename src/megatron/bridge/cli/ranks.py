"""Commands that run on several ranks start them themselves, unless torchrun did."""

import os
import sys
import tempfile
from collections.abc import Sequence

import typer

from megatron.bridge.cli import output
from megatron.bridge.transport.parallel_sizes import ParallelLayout


def join(argv: Sequence[str], layout: ParallelLayout) -> None:
    """Returns in a process that is one of a layout's ranks.

    A single process that needs more ranks starts them with its own arguments, waits, and ends with their exit code.

    Args:
        argv: the arguments of this command line.
    """
    if layout.num_ranks > 1 and "RANK" not in os.environ:
        from megatron.bridge.transport import launcher

        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "megatron.bridge", *argv]
            code = launcher.launch(command, layout.num_ranks, env={output.RANKS_FOLDER: folder})
        raise typer.Exit(code)


def leave() -> None:
    """Ends `torch.distributed`, which complains about ranks that just exit, if a command may have started it."""
    process_groups = sys.modules.get("megatron.bridge.transport.process_groups")  # which imports torch
    if process_groups is not None:
        process_groups.destroy()
