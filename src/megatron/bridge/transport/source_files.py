"""The files that a conversion reads, and the proof that nobody changed them in the meantime.

Readers work on memory maps, so that bytes go from file to file without a copy. But a map follows its file: if the file
is altered during the run, a mixture of two models could be written, and if it is cut short, touching the lost part
kills the process (SIGBUS), which no Python code can catch. So each file's size, time and identity are noted when it is
opened and compared before every read, which turns nearly every such accident into an error, and once more before a
conversion is published. In the remaining cases the process dies of SIGBUS, but has published nothing.
"""

import mmap
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# On Linux, the map then does not count as memory that may be needed, so a file can be larger than the machine's memory.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def tensor_at(data: memoryview, offset: int, shape: Sequence[int], dtype: "torch.dtype") -> "torch.Tensor":
    """The contiguous tensor that begins at byte `offset` of a file's map, without a copy."""
    import torch

    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=num_bytes, offset=offset)
    return flat.view(dtype).view(tuple(shape))


class SourceFiles:
    """Files that are read through memory maps, and the state they were in when they were opened."""

    def __init__(self) -> None:
        self._states: dict[Path, tuple[int, int, int, int]] = {}
        self._maps: dict[Path, mmap.mmap] = {}

    def add(self, path: Path) -> None:
        """Notes the state of a file. Only the first call for a file counts.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
        """
        if path not in self._states:
            self._states[path] = _state(path)

    def map(self, path: Path) -> memoryview:
        """A private map of a file: torch wants writable memory, but nothing that is written to it reaches the file."""
        if path not in self._maps:
            with path.open("rb") as file:
                flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                self._maps[path] = mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
        return memoryview(self._maps[path])

    @property
    def num_bytes(self) -> int:
        """The size of all files together."""
        return sum(size for _, _, size, _ in self._states.values())

    def release(self) -> None:
        """Drops the files from the page cache, where they would push out what other programs need.

        Later reads come from the disk again. Nothing may have been written into the maps.
        """
        for path, content in list(self._maps.items()):
            content.madvise(mmap.MADV_DONTNEED)  # the cache would keep pages that are mapped
            release_pages(path)

    def check(self, path: Path | None = None) -> None:
        """Makes sure that one file, or every file, is still what it was.

        Raises:
            CheckpointError: a file was removed, replaced, cut short or altered.
        """
        for file in self._states if path is None else (path,):
            if _state(file) != self._states[file]:
                raise CheckpointError(
                    f"{file}: altered while it was read (its size, time or identity changed). Nothing was published. "
                    "Let the file come to rest, and run it again."
                )

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Name, size and modification time (ns) of each file, sorted, so that all processes get the same."""
        return sorted((path.name, state[2], state[3]) for path, state in self._states.items())


def is_file(path: Path) -> bool:
    """Whether there is a regular file of this name; False also for a name that is too long for the file system."""
    try:
        return path.is_file()
    except OSError:
        return False


def release_pages(path: Path) -> None:
    """Drops those pages of a file that are on disk from the page cache, where the system has a call for it."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _state(path: Path) -> tuple[int, int, int, int]:
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise CheckpointError(f"{path}: cannot be read ({error}). Restore the file, and run it again.") from error
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
