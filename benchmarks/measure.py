"""Measures what a conversion costs: seconds, and the memory of the process itself."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


def anonymous_bytes() -> int:
    """The memory of this process that is not backed by files (`RssAnon`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


@dataclass
class Measure:
    """A context manager that measures its block.

    Attributes:
        seconds: wall time.
        peak_bytes: the peak of anonymous memory, less that at the start, sampled every 20 ms.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def __enter__(self) -> Self:
        self._base = self._peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, anonymous_bytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self._peak, anonymous_bytes()) - self._base
