"""What a user sees: results on stdout (text or JSON), the rest on stderr, no noise of libraries, an exit code."""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

EXIT_OK, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

# The environment variable that names a folder shared by the ranks that a command starts.
RANKS_FOLDER = "MEGATRON_BRIDGE_RANKS_FOLDER"

# Warnings and log messages that tell a user of the command line nothing: the module or logger, and how they start.
_QUIET_WARNINGS = (
    (r"torch\.distributed\.checkpoint", ""),
    (r"torch\.distributed\.", "You are using a Backend"),
    (r"megatron\.core\.", ""),
    (r"gguf\.", ""),
)
_QUIET_LOGS = (
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
    ("megatron.core.models.gpt.gpt_model", "GPTModel IS DEPRECATED"),
    ("megatron.core.dist_checkpointing", ""),
)


def quiet() -> None:
    """Silences what libraries say in a normal run, here and on the ranks started from here; imports none of them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for module, message in _QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=module)
    for logger, message in _QUIET_LOGS:
        logging.getLogger(logger).addFilter(partial(_starts_otherwise, message))


def _starts_otherwise(start: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(start)


def hide_loading_bars() -> None:
    """Leaves transformers only its bars of downloads: it loads memory-mapped models in a moment."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()


def is_main_rank() -> bool:
    """Whether this process may speak: it is rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def show_progress(as_json: bool) -> bool:
    """Whether to draw progress bars: for a person, at a terminal."""
    return not as_json and sys.stderr.isatty()


def console(stderr: bool = False, soft_wrap: bool = True, quiet: bool = False) -> "Console":
    """Where text goes; nowhere on ranks other than 0.

    Args:
        quiet: whether text goes nowhere on rank 0 as well, because stdout is for JSON.
        soft_wrap: whether long lines are left to the terminal; pages with columns are fitted to its width instead.
    """
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, quiet=quiet or not is_main_rank(), soft_wrap=soft_wrap)


def print_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object on rank 0. NaN and infinities, for which JSON has no numbers, become strings."""
    if is_main_rank():
        sys.stdout.write(json.dumps({name: _plain(value) for name, value in values.items()}) + "\n")
        sys.stdout.flush()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_error(error: Exception, as_json: bool) -> None:
    """Prints `error: ...` on stderr, and with `--json` an object on stdout: once for all ranks that a command started.

    Ranks usually meet the same error at the same time. The first to make a file speaks; the launcher ends the others.
    """
    folder = os.environ.get(RANKS_FOLDER)
    if folder is not None:
        try:
            (Path(folder) / "error").touch(exist_ok=False)
        except FileExistsError:
            return
    if as_json and (folder is not None or is_main_rank()):
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()


def mark(passed: bool) -> str:
    """The sign in front of a result, as rich's markup."""
    return "[green]✓[/]" if passed else "[red]✗[/]"


def finish(passed: bool) -> None:
    """Ends a command with the exit code of a failed check if it did not pass."""
    if not passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def size(num_bytes: int) -> str:
    """A number of bytes as `1.23 GB` (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.2f} {unit}"
    return f"{num_bytes} B"


def peak_memory() -> int:
    """The largest resident memory, in bytes, that this process or a child that ended has had."""
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    usages = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(usages) * scale
