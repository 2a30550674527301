"""How much of a machine an offline conversion may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """How much a conversion may use.

    Attributes:
        memory: the bytes of buffers, of all threads together.
        num_threads: how many files are written at the same time.
        part: (index, count): this process writes every `count`-th file, and whichever process finishes last publishes
            the folder. For processes that do not know of each other (a Slurm array); by default, the ranks of this run
            share the files.

    Example: `AutoBridge.import_ckpt(hf, out, resources=Resources(memory=2**30, num_threads=8))`
    """

    memory: int = 256 * 2**20
    num_threads: int = 2
    part: tuple[int, int] | None = None

    @property
    def block_bytes(self) -> int:
        """The size of one buffer. A thread holds a block twice: as it is put together, and as it is written."""
        return max(self.memory // (2 * self.num_threads), 1 << 16)
