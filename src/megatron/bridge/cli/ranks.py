"""Commands that run on several ranks start them themselves, unless torchrun did."""

import os
import sys
import tempfile
from collections.abc import Sequence

import typer

from megatron.bridge.cli import output
from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.transport.parallel_sizes import ParallelLayout

# What a process takes that has imported torch, transformers and megatron-core, beyond what it shares with others.
_RANK_BYTES = 300_000_000


def join(argv: Sequence[str], layout: ParallelLayout, model: str, revision: str | None = None) -> None:
    """Returns in a process that is one of a layout's ranks.

    A single process that needs more ranks starts them with its own arguments, waits, and ends with their exit code.
    What the model's config rules out is said before that.

    Args:
        argv: the arguments of this command line.
        model: a Megatron checkpoint, a Hugging Face folder or a hub id.
        revision: branch, tag or commit of the hub id.

    Raises:
        ParallelLayoutError: the model cannot be cut like this, or the ranks are more than this machine can hold.
        BridgeError: all else that `check_layout` raises.
    """
    if layout.num_ranks > 1 and "RANK" not in os.environ:
        from megatron.bridge.discovery.light_imports import use_light_imports

        use_light_imports()  # the ranks are other processes: this one never needs torch
        from megatron.bridge.discovery.layout_check import check_layout
        from megatron.bridge.transport import launcher

        check_layout(model, layout, revision)
        _check_memory(layout)

        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "megatron.bridge", *argv]
            code = launcher.launch(command, layout.num_ranks, env={output.RANKS_FOLDER: folder})
        raise typer.Exit(code)


def _check_memory(layout: ParallelLayout) -> None:
    import psutil

    memory, needed = psutil.virtual_memory().total, layout.num_ranks * _RANK_BYTES
    if needed > memory:
        raise ParallelLayoutError(
            f"{layout}: {layout.num_ranks} ranks on this machine need {output.size(needed)} of memory before they load "
            f"any weights, and it has {output.size(memory)}; choose smaller sizes, or start the ranks on several "
            "machines with torchrun"
        )


def leave() -> None:
    """Ends `torch.distributed`, which complains about ranks that just exit, if a command may have started it."""
    process_groups = sys.modules.get("megatron.bridge.transport.process_groups")  # which imports torch
    if process_groups is not None:
        process_groups.destroy()
