"""Folders that appear whole or not at all, and whose making can be interrupted, resumed and shared.

A conversion writes into a staging folder beside its target. Each file is written under a temporary name, synchronised
to disk, checksummed and recorded; once all files are recorded, the folder gets its final name in one rename. A killed
run leaves the staging folder behind, and the next run of the same conversion writes only what is not recorded yet.
Several processes, on one machine or many, may each take a share of the files: whoever finishes last publishes.

The staging folder of `out`, for a conversion whose fingerprint has this hash, is `.out.<hash>.incomplete/`, with

    files/         what will be `out`
    manifest/      for each finished file, <file>.json: size, checksum (XXH3, 64 bits), and what its writer remembers
    lock           locked (flock): shared by the processes that write, exclusive to the one that publishes

The processes of one conversion find each other by the hash. Staging folders of `out` with other hashes were left by
earlier, different conversions, and are removed. A file is locked while it is written, so that a second start of the
same conversion waits instead of writing into the same file.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import mmap
import os
import shutil
from collections.abc import Buffer, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron.bridge.errors import CheckpointError
from megatron.bridge.transport.source_files import SourceFiles, release_pages

_PARTIAL = ".partial"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Whenever this many bytes of a file have been written, they are sent to disk: early enough that it is never idle.
_SYNC_BYTES = 64 * 2**20


@dataclass(frozen=True)
class OutputFile:
    """One file of a conversion.

    Attributes:
        name: relative to the output folder.
        write: writes the content into an open binary file and returns what to remember about it (JSON).
    """

    name: str
    write: Callable[[BinaryIO], Mapping[str, object]]


class StagingFolder:
    """The folder in which `out` is made.

    Args:
        out: the final folder; must not exist, or must be empty.
        fingerprint: tells this conversion from others (sources, options, layout); anything that JSON can write.
        sources: what the conversion reads. Before the folder is published, and whenever something fails, they are
            checked for changes. If they are large for this machine's memory, finished files and what was read are
            dropped from the page cache, so that it is left to other programs.

    Attributes:
        path: the folder that will be `out`.

    Raises:
        CheckpointError: `out` already holds something, or nothing can be written beside it.
    """

    def __init__(self, out: Path, fingerprint: object, sources: Sequence[SourceFiles] = ()) -> None:
        self.out = out.resolve()
        self._sources = sources
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._releases_pages = sum(source.num_bytes for source in sources) > memory / 2
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
        self._root = self.out.with_name(f".{self.out.name}.{digest}.incomplete")
        self.path = self._root / "files"
        self._manifest = self._root / "manifest"
        self._lock: BinaryIO | None = None
        with _clear_errors(self._root):
            self._check_free()
            for other in self.out.parent.glob(f".{glob.escape(self.out.name)}.{'[0-9a-f]' * 16}.incomplete"):
                if other != self._root:
                    self._discard(other)
            self._open_lock()

    def recorded(self, name: str, verify: bool = True) -> dict[str, object] | None:
        """What is remembered about a finished file; `None` if it is not finished, or was changed since.

        Args:
            verify: compare the checksum, not only the size.
        """
        path = self.path / name
        try:
            record = json.loads(self._record_path(name).read_text())
            is_unchanged = path.stat().st_size == record["size"] and (not verify or checksum(path) == record["xxh3"])
            content: dict[str, object] = record["content"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # nothing recorded, or the record was altered
            return None
        return content if is_unchanged else None

    def write_files(self, files: Sequence[OutputFile], part: tuple[int, int] = (0, 1), num_threads: int = 2) -> None:
        """Writes the files that are not recorded yet.

        Args:
            files: all files of the conversion, the same in every process.
            part: `(index, count)`: this process takes every `count`-th file, from number `index` on.
            num_threads: how many files are written at the same time.

        Raises:
            CheckpointError: the disk is full, or a file cannot be written. Finished files are kept.
        """
        try:
            with ThreadPoolExecutor(num_threads) as finishers, ThreadPoolExecutor(num_threads) as writers:
                pending = [writers.submit(self._write_file, file, finishers) for file in files[part[0] :: part[1]]]
                try:
                    for future in pending:
                        future.result().result()
                except BaseException:
                    for future in pending:
                        future.cancel()
                    self._check_sources()  # the cause, if one of them has changed
                    raise
        finally:
            self._close_lock()

    def publish(self, files: Sequence[OutputFile], finish: Callable[[list[dict[str, object]]], None]) -> bool:
        """Gives the folder its final name, if every file is recorded and no other process is working on it.

        Args:
            files: all files of the conversion.
            finish: writes the rest into `path`, given what the writers of the files remembered, in order.

        Returns:
            Whether this process published the folder.

        Raises:
            CheckpointError: something cannot be written, or `finish` failed; nothing was published.
        """
        with _clear_errors(self.path):
            try:
                if not self._lock_alone():
                    return False
                records = [self.recorded(file.name, verify=False) for file in files]
                if any(record is None for record in records):
                    return False
                for partial in self.path.rglob(f"*{_PARTIAL}"):  # of killed runs
                    partial.unlink()
                finish([record for record in records if record is not None])
                self._check_sources()
                self._synchronise({self.path / file.name for file in files})
                self._check_free()
                self.path.rename(self.out)
                _sync(self.out.parent)
                shutil.rmtree(self._root)
            finally:
                self._close_lock()
        return True

    def _check_sources(self) -> None:
        for source in self._sources:
            source.check()

    def _check_free(self) -> None:
        if self.out.is_mount():
            raise CheckpointError(f"{self.out}: is a mount point, which cannot be replaced; give a folder inside it")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise CheckpointError(f"{self.out}: already exists and is not empty; choose another folder or remove it")

    def _discard(self, other: Path) -> None:
        """Removes the staging folder of another conversion to `out`, unless it is running."""
        with contextlib.suppress(FileNotFoundError), (other / "lock").open("rb+") as lock:
            if not _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise CheckpointError(
                    f"{self.out}: another conversion to this folder is running (in {other}); wait for it. "
                    "Processes that share a conversion need the same source, options and memory."
                )
        shutil.rmtree(other, ignore_errors=True)

    def _open_lock(self) -> None:
        """Makes the folders and joins the processes that write."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._manifest.mkdir(exist_ok=True)
            lock = (self._root / "lock").open("wb")
            _flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, self._root / "lock"):
                self._lock = lock
                return
            lock.close()  # another process published meanwhile
            self._check_free()

    def _lock_alone(self) -> bool:
        """Takes the lock for this process alone; False if others are writing, or have published."""
        try:
            lock = (self._root / "lock").open("rb+")
        except FileNotFoundError:
            return False
        self._lock = lock
        return _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(lock, self._root / "lock")

    def _close_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _write_file(self, file: OutputFile, finishers: Executor) -> Future[None]:
        """Writes one file. It is synchronised and checksummed while the next one is written."""
        path = self.path / file.name
        with _clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = _open_alone(path.with_name(path.name + _PARTIAL))
            try:
                if self.recorded(file.name) is not None:  # by an earlier run, or by the process that held the lock
                    stream.close()
                    return finishers.submit(lambda: None)
                stream.truncate(0)
                stream.executor = finishers
                content = file.write(stream)
            except BaseException:
                stream.close()
                raise
        return finishers.submit(self._finish_file, file.name, stream, content)

    def _finish_file(self, name: str, stream: "_OutputStream", content: Mapping[str, object]) -> None:
        path = self.path / name
        partial = path.with_name(path.name + _PARTIAL)
        with _clear_errors(path), stream:
            stream.synchronise()
            record = {"size": partial.stat().st_size, "xxh3": checksum(partial), "content": content}
            if self._releases_pages:
                release_pages(partial)
                for source in self._sources:
                    source.release()
            partial.rename(path)
            _write_text(self._record_path(name), json.dumps(record))

    def _record_path(self, name: str) -> Path:
        return self._manifest / f"{name.replace('/', '__')}.json"

    def _synchronise(self, done: set[Path]) -> None:
        """Brings the folders, and the files that are not yet `done`, to disk."""
        for path in [*self.path.rglob("*"), self.path]:
            if path not in done:
                _sync(path)


def checksum(path: Path) -> str:
    """The XXH3 checksum (64 bits) of a file's bytes, as 16 hexadecimal digits."""
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


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors into a `CheckpointError` that says what to do."""
    try:
        yield
    except OSError as error:
        again = "Nothing was published; run it again, and what is finished will be kept."
        if error.errno in _NO_SPACE:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}. Free some space. {again}") from error
        if error.errno == errno.EFAULT:  # write(2) from a memory map whose file has become shorter
            raise CheckpointError(f"{path}: a source file became shorter while it was read. {again}") from error
        raise CheckpointError(f"{path}: cannot be written: {error}. {again}") from error


class _OutputStream(io.FileIO):
    """A file that goes to disk while it is being written.

    Attributes:
        executor: where the synchronisation runs; with `None` there is one at the end only.
    """

    executor: Executor | None = None
    _syncing: Future[None] | None = None
    _num_unsynced = 0

    def write(self, data: Buffer, /) -> int:
        num_written = super().write(data)
        self._num_unsynced += num_written
        if self.executor and self._num_unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._check()
            self._syncing = self.executor.submit(os.fdatasync, self.fileno())
            self._num_unsynced = 0
        return num_written

    def synchronise(self) -> None:
        """Returns when everything is on disk."""
        self._check()
        os.fsync(self.fileno())

    def _check(self) -> None:
        """The system reports a failed write to disk only once, so no answer may be lost."""
        if self._syncing is not None:
            self._syncing.result()


def _open_alone(path: Path) -> _OutputStream:
    """Opens a file for writing, and waits until no other process is writing it. Keeps its content."""
    while True:
        stream = _OutputStream(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "rb+")
        _flock(stream, fcntl.LOCK_EX)
        if _is_at(stream, path):
            return stream
        stream.close()  # the other process has finished it and given it its name


def _flock(file: BinaryIO, operation: int) -> bool:
    """Locks a file; False if another process holds it. Where there are no locks, parts must be run one by one."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is on disk whole, or not there at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
