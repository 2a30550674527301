"""Folders that appear whole or not at all, and whose making can be interrupted, resumed and shared.

A conversion writes into a staging folder beside its target. Each file is written under a temporary name, synchronised
to disk, checksummed and recorded; when all files are recorded, the folder gets its final name in one rename. A killed
run leaves the staging folder, and the next run of the same conversion writes only what is not recorded. Several
processes, on one machine or many, may each take a share of the files: whoever finishes last publishes.

Staging folder of `out`: `.out.incomplete/`, with `out`'s files and `.manifest/`:

    plan.json      the fingerprint of the conversion; another conversion starts over
    <file>.json    size and checksum (XXH3, 64 bits) of a finished file, and what its writer wants to remember
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.bridge.errors import CheckpointError

_MANIFEST = ".manifest"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class OutputFile:
    """One file of a conversion.

    Attributes:
        name: relative to the output folder.
        write: writes the content into an open binary file and returns what to remember of it (JSON).
    """

    name: str
    write: Callable[[Any], dict[str, Any]]


class StagingFolder:
    """The folder in which `out` is made.

    Args:
        out: the final folder; must not exist, or be empty.
        fingerprint: tells this conversion from others (sources, options, layout).

    Raises:
        CheckpointError: `out` holds something.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out}: already exists and is not empty; choose another folder or remove it")
        self.out = out
        self.path = out.with_name(f".{out.name}.incomplete")
        self._manifest = self.path / _MANIFEST
        plan = json.dumps(fingerprint, sort_keys=True)
        plan_path = self._manifest / "plan.json"
        if plan_path.is_file() and plan_path.read_text() != plan:
            shutil.rmtree(self.path)
        if not plan_path.is_file():
            self._manifest.mkdir(parents=True, exist_ok=True)
            _write_text(plan_path, plan)

    def recorded(self, name: str, verify: bool = True) -> dict[str, Any] | None:
        """What is remembered of a finished file, or `None`. A file that changed since then does not count.

        Args:
            verify: compare the checksum, not only the size.
        """
        record_path, path = self._record_path(name), self.path / name
        if not record_path.is_file() or not path.is_file():
            return None
        record = json.loads(record_path.read_text())
        if path.stat().st_size != record["size"] or (verify and checksum(path) != record["xxh3"]):
            return None
        return record["content"]

    def write_files(self, files: Sequence[OutputFile], part: tuple[int, int] = (0, 1), num_threads: int = 2) -> None:
        """Writes the files that are not recorded yet.

        Args:
            files: all files of the conversion, the same in every process.
            part: (index, count): this process takes every `count`-th file.
            num_threads: files written at the same time.
        """
        with ThreadPoolExecutor(num_threads) as finishers, ThreadPoolExecutor(num_threads) as writers:
            pending = [writers.submit(self._write_file, file, finishers) for file in files[part[0] :: part[1]]]
            try:
                for future in pending:
                    future.result().result()
            except BaseException:
                for future in pending:
                    future.cancel()
                raise

    def collect(self, files: Sequence[OutputFile]) -> list[dict[str, Any]] | None:
        """The records of all files in order, or `None` if some are not finished."""
        records = [self.recorded(file.name, verify=False) for file in files]
        return None if any(record is None for record in records) else [r for r in records if r is not None]

    def _write_file(self, file: OutputFile, finishers: Executor) -> Future[None]:
        """Writes one file; its synchronisation and checksum run beside the writing of the next one."""
        if self.recorded(file.name) is not None:
            return finishers.submit(lambda: None)
        path = self.path / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + _PARTIAL)
        with partial.open("wb", buffering=0) as stream:
            content = file.write(stream)
        return finishers.submit(self._finish_file, file.name, partial, content)

    def _finish_file(self, name: str, partial: Path, content: dict[str, Any]) -> None:
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        path = self.path / name
        record = {"size": partial.stat().st_size, "xxh3": checksum(partial), "content": content}
        partial.rename(path)
        _write_text(self._record_path(name), json.dumps(record))

    def _record_path(self, name: str) -> Path:
        return self._manifest / f"{name.replace('/', '__')}.json"

    def publish(self) -> None:
        """Gives the folder its final name. Another process that publishes at the same moment is no error."""
        try:
            shutil.rmtree(self._manifest)
            if self.out.exists():
                self.out.rmdir()
            self.path.rename(self.out)
        except FileNotFoundError:
            if not self.out.is_dir():
                raise
        _sync_folder(self.out.parent)


def checksum(path: Path) -> str:
    """The XXH3 (64 bits) of a file's bytes, as 16 hexadecimal digits."""
    import mmap

    import xxhash

    digest = xxhash.xxh3_64()
    if path.stat().st_size == 0:
        return digest.hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        for start in range(0, len(view), 1 << 24):
            with view[start : start + (1 << 24)] as block:
                digest.update(block)
        view.release()
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole, on disk, or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
