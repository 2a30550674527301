"""A transfer's progress on the terminal: weights, bytes and rate."""

from types import TracebackType
from typing import Self

import rich.progress

from megatron.bridge.transport.process_groups import rank


class Progress:
    """A progress bar on rank 0, or nothing. It is a context manager, within which each weight is an `advance`.

    Args:
        description: what is being done.
        total: the number of steps, or `None` if it is not known.
        enabled: whether to show anything.
    """

    def __init__(self, description: str, total: int | None, *, enabled: bool = True) -> None:
        self._bar: rich.progress.Progress | None = None
        self.num_bytes = 0
        if enabled and rank() == 0:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[amount]}"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
            ]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(description, total=total, amount="", rate="")

    def advance(self, num_bytes: int) -> None:
        """Counts one step, which moved `num_bytes`."""
        self.num_bytes += num_bytes
        if self._bar is not None:
            elapsed = self._bar.tasks[0].elapsed or 0.0
            rate = f"{self.num_bytes / elapsed / 1e6:,.0f} MB/s" if elapsed > 0 else ""
            self._bar.update(self._task, advance=1, amount=f"{self.num_bytes / 1e9:.2f} GB", rate=rate)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
