"""What an offline conversion may use of a machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What a conversion may use.

    Attributes:
        memory: bytes of buffers, over all threads.
        num_threads: files written at the same time.
        part: (index, count): this process writes every `count`-th file, and whoever finishes last publishes; for
            processes that know nothing of each other (a Slurm array). Default: the ranks of this run share the files.
    """

    memory: int = 256 * 2**20
    num_threads: int = 2
    part: tuple[int, int] | None = None

    @property
    def block_bytes(self) -> int:
        """Size of one buffer. A block is held once while it is put together and once more while it is written."""
        return max(self.memory // (2 * self.num_threads), 1 << 16)
