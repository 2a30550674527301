"""Files that a conversion reads, and the proof that nobody changed them meanwhile.

Readers look at memory maps, so that bytes go from file to file without a copy. A map shows what its file becomes: if
the file is altered during the run, a mixture of two models could be written, and if it is made shorter, touching the
lost part ends the process (SIGBUS), which no Python code can catch. So each file's size, time and identity are noted
when it is opened, compared before every read, which turns nearly every such accident into an error, and compared once
more before a conversion is published. A process that ends by SIGBUS in the rest of the cases has published nothing.
"""

import os
from pathlib import Path

from megatron.bridge.errors import CheckpointError


class SourceFiles:
    """The state of files when they were opened."""

    def __init__(self) -> None:
        self._states: dict[Path, tuple[int, int, int, int]] = {}

    def add(self, path: Path) -> None:
        """Notes the state of a file, at the time of the first call for it.

        Raises:
            CheckpointError: there is no such file.
        """
        if path not in self._states:
            self._states[path] = _state(path)

    def check(self, path: Path | None = None) -> None:
        """Makes sure that one file, or every file, is what it was.

        Raises:
            CheckpointError: it was removed, replaced, cut or altered since.
        """
        for file in self._states if path is None else (path,):
            if _state(file) != self._states[file]:
                raise CheckpointError(
                    f"{file}: altered while it was read (its size, time or identity changed). Nothing was published. "
                    "Let the file come to rest, and run it again."
                )

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Name, size and modification time (ns) of each file, sorted: the same in other processes."""
        return sorted((path.name, state[2], state[3]) for path, state in self._states.items())


def _state(path: Path) -> tuple[int, int, int, int]:
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise CheckpointError(f"{path}: cannot be read ({error}). Restore the file, and run it again.") from error
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
