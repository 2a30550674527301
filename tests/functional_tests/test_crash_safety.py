"""Conversions that are killed, starved of disk space, deprived of their source or started twice.

Children are forked from this process, which has imported everything, so that a run costs only its conversion. The model
has 67 MB in 13 HF files, and its import 14.
"""

import contextlib
import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers

from megatron.bridge import AutoBridge, runtime
from megatron.bridge.errors import BridgeError, CheckpointError
from megatron.bridge.models.conversion import offline
from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.transport import staging
from megatron.bridge.verification import verify_checkpoints
from tests.programs import TIMEOUT
from tests.ranks import forget_groups

_FILE_BYTES = 5 * 2**20


# Processes


class Child:
    """A function in a process of its own, forked from this one."""

    def __init__(self, fn: Callable[[], Any]):
        context = get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_child_main, args=(fn, sender))
        self.process.start()
        sender.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def outcome(self) -> Any:
        """What the function returned or raised, or the negative number of the signal that ended it."""
        try:
            result = self._receiver.recv()
        except EOFError:
            result = None
        self.process.join(60)
        code = self.process.exitcode
        self._receiver.close()
        self.process.close()
        return code if code else result


def _child_main(fn: Callable[[], Any], sender: Any) -> None:
    signal.alarm(100)  # ends this process even if the parent is killed
    torch.set_num_threads(1)
    forget_groups()
    try:
        result = fn()
    except BridgeError as error:
        result = error
    except BaseException:
        result = AssertionError(traceback.format_exc())
    sender.send(result)


def run(fn: Callable[[], Any]) -> Any:
    """The outcome of `fn` in a child; anything that is not expected of a conversion is raised."""
    outcome = Child(fn).outcome()
    if isinstance(outcome, AssertionError):
        raise outcome
    return outcome


# Conversions


class Conversion:
    """Import or export of the model, with an undisturbed run of it to compare with."""

    def __init__(self, kind: str, source: Path, hf: Path, reference: Path):
        self.kind, self.source, self.hf, self.reference = kind, source, hf, reference
        self._expected = _contents(reference)

    def __call__(self, out: Path, resources: Resources | None = None, dtype: torch.dtype | None = None) -> None:
        if self.kind == "import":
            AutoBridge.import_ckpt(self.source, out, resources=resources, torch_dtype=dtype)
        else:
            bridge = AutoBridge.from_hf_pretrained(self.hf)
            bridge.export_ckpt(self.source, out, resources=resources, torch_dtype=dtype)

    def copied(self, folder: Path) -> "Conversion":
        """The same with a copy of the source, to be damaged."""
        source = Path(shutil.copytree(self.source, folder, copy_function=shutil.copy2))
        return Conversion(self.kind, source, self.hf, self.reference)

    @property
    def source_files(self) -> list[Path]:
        return sorted(path for path in self.source.rglob("*") if path.suffix in (".safetensors", ".distcp"))

    def is_complete(self, out: Path) -> bool:
        """Whether `out` has the files of the undisturbed run, byte by byte (`.metadata`: the same content)."""
        return _contents(out) == self._expected


def _contents(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == ".metadata":
            metadata = dcp.FileSystemReader(path.parent).read_metadata()
            contents[str(path.relative_to(folder))] = (metadata.state_dict_metadata, metadata.storage_data)
        elif path.is_file():
            contents[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


def _staged(out: Path) -> Path | None:
    """The only staging folder of `out`, if there is one."""
    (*folders,) = out.parent.glob(f".{out.name}.*.incomplete")
    assert len(folders) <= 1
    return folders[0] if folders else None


def _recorded(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each finished file in the staging folder of `out`."""
    folder = _staged(out)
    found = {}
    for record in folder.glob("manifest/*.json") if folder else ():
        name = record.name.removesuffix(".json").replace("__0_", "\0").replace("__", "/").replace("\0", "__0_")
        path = folder / "files" / name.removesuffix(".json")
        if path.is_file():  # else the run was killed while it tidied up
            found[str(path.relative_to(folder / "files"))] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def _kill_after(num_files: int) -> None:
    """In a child: SIGKILL to itself when so many files are finished, as by chance at that moment."""
    right = staging.StagingFolder._finish_file
    count = 0

    def finish(self: Any, *args: Any) -> None:
        nonlocal count
        right(self, *args)
        count += 1
        if count >= num_files:
            os.kill(os.getpid(), signal.SIGKILL)

    staging.StagingFolder._finish_file = finish  # type: ignore[method-assign]


def _interrupt(conversion: Conversion, out: Path, num_files: int = 4, **kwargs: Any) -> None:
    def child() -> None:
        _kill_after(num_files)
        conversion(out, **kwargs)

    assert run(child) == -signal.SIGKILL
    assert not out.exists()
    assert len(_recorded(out)) >= num_files


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Conversion]]:
    folder = tmp_path_factory.mktemp("crash")
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "hf", max_shard_size="5MB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "_file_bytes", lambda total: _FILE_BYTES)  # in forked children as well
        runtime.enter()
        AutoBridge.import_ckpt(folder / "hf", folder / "megatron")
        AutoBridge.from_hf_pretrained(folder / "hf").export_ckpt(folder / "megatron", folder / "exported")
        found = {
            "import": Conversion("import", folder / "hf", folder / "hf", folder / "megatron"),
            "export": Conversion("export", folder / "megatron", folder / "hf", folder / "exported"),
        }
        assert all(len(conversion.source_files) > 8 for conversion in found.values())
        assert verify_checkpoints(folder / "hf", folder / "exported").equal
        yield found


@pytest.fixture(params=["import", "export"])
def conversion(request: pytest.FixtureRequest, conversions: dict[str, Conversion]) -> Conversion:
    return conversions[request.param]


# Kills


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.proof)])
def test_kill_at_any_moment(num_kills: int, conversion: Conversion, tmp_path: Path) -> None:
    """After each kill nothing incomplete has the final name, and the next run completes it bit for bit."""
    out = tmp_path / "out"
    duration = 0.0
    for _ in range(2):  # the first one warms up
        start = time.monotonic()
        assert run(lambda: conversion(out)) is None
        duration = time.monotonic() - start
        assert conversion.is_complete(out)
        shutil.rmtree(out)
    moments = random.Random(0)
    num_killed = num_kept = 0
    for _ in range(5 * num_kills):
        child = Child(lambda: conversion(out))
        child.process.join(moments.uniform(0, duration))
        child.signal(signal.SIGKILL)
        was_killed = child.outcome() == -signal.SIGKILL
        if not was_killed or out.exists():  # in time, or killed after the rename
            assert conversion.is_complete(out)
        else:
            recorded = _recorded(out)
            assert run(lambda: conversion(out)) is None
            assert conversion.is_complete(out)
            assert _staged(out) is None
            for name, (inode, mtime) in recorded.items():  # not written again
                stat = (out / name).stat()
                assert (stat.st_ino, stat.st_mtime_ns) == (inode, mtime), name
            num_kept += bool(recorded)
        num_killed += was_killed
        shutil.rmtree(out)
        if num_killed == num_kills:
            break
    assert num_killed == num_kills
    assert num_kept > 0


_FRESH = """
import sys
from megatron.bridge import AutoBridge, runtime
runtime.enter()
from megatron.bridge.models.conversion import offline
offline._file_bytes = lambda total: {file_bytes}
AutoBridge.import_ckpt(*sys.argv[1:])
"""


def test_another_interpreter_goes_on(conversions: dict[str, Conversion], tmp_path: Path) -> None:
    """Nothing of a fingerprint may be an address or the like, which differs from process to process."""
    conversion = conversions["import"]
    out = tmp_path / "out"
    _interrupt(conversion, out)
    recorded = _recorded(out)
    code = _FRESH.format(file_bytes=_FILE_BYTES)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, conversion.source, out], check=True, timeout=TIMEOUT)
    assert conversion.is_complete(out)
    for name, (inode, mtime) in recorded.items():
        assert ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) == (inode, mtime)


def test_a_recorded_file_that_was_altered_is_written_again(conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _interrupt(conversion, out)
    altered, garbled, *others = _recorded(out).items()
    staged = _staged(out)
    assert staged is not None
    path = staged / "files" / altered[0]
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes([file.read(1)[0] ^ 1]))
    record = next(path for path in (staged / "manifest").iterdir() if Path(garbled[0]).name in path.name)
    record.write_text('{"size": ')
    before = {name: (staged / "files" / name).stat().st_ino for name, _ in (altered, garbled, *others)}
    assert run(lambda: conversion(out)) is None
    assert conversion.is_complete(out)
    for name, _ in others:
        assert (out / name).stat().st_ino == before[name]


def test_another_conversion_starts_over(conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _interrupt(conversion, out, dtype=torch.bfloat16)
    stale = _staged(out)
    assert run(lambda: conversion(out)) is None
    assert conversion.is_complete(out)
    assert stale is not None and not stale.exists()


def test_a_staging_folder_of_another_name_is_left_alone(conversion: Conversion, tmp_path: Path) -> None:
    _interrupt(conversion, tmp_path / "out.v2")
    assert run(lambda: conversion(tmp_path / "out")) is None
    assert len(_recorded(tmp_path / "out.v2")) >= 4


def test_blocks_of_another_size(conversions: dict[str, Conversion], tmp_path: Path) -> None:
    """Memory decides how an import cuts fused weights: files from before must not be mixed with new ones."""
    out = tmp_path / "out"
    _interrupt(conversions["import"], out, resources=Resources(memory=2**20))
    assert run(lambda: conversions["import"](out)) is None
    assert verify_checkpoints(conversions["import"].hf, out).equal
    assert conversions["import"].is_complete(out)


# Disk space


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, resource.RLIM_INFINITY))


def _mount_tmpfs(folder: Path, size: str, flags: int = 0) -> None:
    """In a child: a file system of so many bytes, which only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")


def _own_mounts() -> None:
    if os.getuid() == 0:
        os.unshare(os.CLONE_NEWNS)
        ctypes.CDLL(None).mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        return
    user, group = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def test_full_disk(conversion: Conversion, tmp_path: Path) -> None:
    """A file system without space for the result: an error that says so; with space, the run is completed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "out"

    def child() -> tuple[str, bool, int, bool]:
        try:
            _own_mounts()
            _mount_tmpfs(disk, "30m")
        except OSError:  # not allowed in this environment: files of 2 MiB at most are as good as a small disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, resource.RLIM_INFINITY))
        try:
            conversion(out)
        except CheckpointError as error:
            message = str(error)
        existed, num_recorded = out.exists(), len(_recorded(out))
        if disk.is_mount():
            _mount_tmpfs(disk, "300m", 32)  # MS_REMOUNT
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        conversion(out)
        return message, existed, num_recorded, conversion.is_complete(out)

    message, existed, num_recorded, is_complete = run(child)
    assert "Free some space" in message and str(disk) in message
    assert not existed
    assert num_recorded >= 0
    assert is_complete


def test_limited_file_size(conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def child() -> None:
        _limit_file_size()
        conversion(out)

    error = run(child)
    assert isinstance(error, CheckpointError) and "Free some space" in str(error)
    assert not out.exists()
    assert run(lambda: conversion(out)) is None
    assert conversion.is_complete(out)


def test_disk_that_is_full_at_the_end(conversion: Conversion, tmp_path: Path) -> None:
    """The small files that complete a folder cannot be written."""
    out = tmp_path / "out"
    name = "write_run_config" if conversion.kind == "import" else "write_index"

    def child() -> None:
        right = getattr(offline, name)

        def limited(*args: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
            right(*args)

        setattr(offline, name, limited)
        conversion(out)

    error = run(child)
    assert isinstance(error, CheckpointError) and "Free some space" in str(error)
    assert not out.exists()
    assert run(lambda: conversion(out)) is None
    assert conversion.is_complete(out)


# The source


def _remove(path: Path) -> None:
    path.unlink()


def _alter(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


def _replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("new"))
    path.with_name("new").replace(path)


def _cut(path: Path) -> None:
    os.truncate(path, 5000)


@pytest.mark.parametrize("damage", [_remove, _alter, _replace, _cut], ids=lambda fn: fn.__name__[1:])
def test_a_source_that_changes_during_the_run(
    damage: Callable[[Path], None], conversion: Conversion, tmp_path: Path
) -> None:
    """Whatever happens to a file that has not been read yet: an error names it, and nothing is published."""
    conversion = conversion.copied(tmp_path / "source")
    victim = conversion.source_files[-2 if conversion.kind == "export" else -1]  # an import's last file has no tensor
    out = tmp_path / "out"

    def child() -> None:
        right = staging.checksum

        def damaging(path: Path) -> str:
            staging.checksum = right
            damage(victim)
            return right(path)

        staging.checksum = damaging  # called when the first file has been written
        conversion(out, resources=Resources(num_threads=1))

    outcome = run(child)
    if outcome == -signal.SIGBUS:  # the file was being read at that very moment
        assert damage is _cut
    else:
        assert isinstance(outcome, CheckpointError) and victim.name in str(outcome), outcome
    assert not out.exists()


@pytest.mark.parametrize("index", [0, 5])
def test_a_source_that_changes_after_it_was_read(index: int, conversion: Conversion, tmp_path: Path) -> None:
    """The last check, just before publication: what was written may be of both states. The next run starts over."""
    original = conversion
    conversion = conversion.copied(tmp_path / "source")
    out = tmp_path / "out"

    def child() -> None:
        right = staging.StagingFolder.publish

        def publish(self: Any, *args: Any) -> bool:
            _alter(conversion.source_files[index])
            return right(self, *args)

        staging.StagingFolder.publish = publish  # type: ignore[method-assign]
        conversion(out)

    outcome = run(child)
    assert isinstance(outcome, CheckpointError) and "altered while it was read" in str(outcome)
    assert not out.exists()
    recorded = _recorded(out)
    assert run(lambda: conversion(out)) is None
    for name, (_, mtime) in recorded.items():
        assert (out / name).stat().st_mtime_ns != mtime
    assert _contents(out).keys() == _contents(original.reference).keys()


def test_a_checkpoint_saved_again_between_two_runs(conversions: dict[str, Conversion], tmp_path: Path) -> None:
    """Same names, other weights: an export that goes on must not mix them."""
    conversion = conversions["export"].copied(tmp_path / "source")
    out = tmp_path / "out"
    _interrupt(conversion, out)
    victim = conversion.source_files[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert run(lambda: conversion(out)) is None
    assert verify_checkpoints(out, conversion.source).equal
    assert not verify_checkpoints(out, conversions["export"].source).equal


# Several processes


def _together(*functions: Callable[[], Any]) -> list[Any]:
    children = [Child(fn) for fn in functions]
    return [child.outcome() for child in children]


@pytest.mark.parametrize("attempt", range(3))
def test_parts_at_the_same_time(attempt: int, conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = [Resources(part=(index, 3)) for index in range(3)]
    outcomes = _together(*(lambda part=part: conversion(out, resources=part) for part in parts))
    assert outcomes == [None, None, None]
    assert conversion.is_complete(out)
    assert _staged(out) is None


def test_parts_one_after_another(conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(lambda: conversion(out, resources=Resources(part=(1, 2)))) is None
    assert not out.exists()
    _interrupt(conversion, out, num_files=2, resources=Resources(part=(0, 2), num_threads=1))
    assert run(lambda: conversion(out, resources=Resources(part=(1, 2)))) is None
    assert not out.exists()
    assert run(lambda: conversion(out, resources=Resources(part=(0, 2)))) is None
    assert conversion.is_complete(out)
    assert _staged(out) is None


@pytest.mark.parametrize("attempt", range(2))
def test_the_same_run_started_twice(attempt: int, conversion: Conversion, tmp_path: Path) -> None:
    """One of them publishes; the other finds its work done, or the folder already there."""
    out = tmp_path / "out"
    outcomes = _together(*([lambda: conversion(out)] * 2))
    assert None in outcomes
    assert all(outcome is None or "already exists" in str(outcome) for outcome in outcomes), outcomes
    assert conversion.is_complete(out)
    assert _staged(out) is None


def test_another_conversion_to_the_same_folder_is_running(conversion: Conversion, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def paused() -> None:
        right = staging.StagingFolder._finish_file

        def finish(self: Any, *args: Any) -> None:
            staging.StagingFolder._finish_file = right
            os.kill(os.getpid(), signal.SIGSTOP)
            right(self, *args)

        staging.StagingFolder._finish_file = finish
        conversion(out, resources=Resources(num_threads=1))  # two threads could stop the process twice

    first = Child(paused)
    state = Path(f"/proc/{first.process.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.01)
    second = run(lambda: conversion(out, dtype=torch.bfloat16))
    first.signal(signal.SIGCONT)
    assert isinstance(second, CheckpointError) and "another conversion to this folder is running" in str(second)
    assert first.outcome() is None
    assert conversion.is_complete(out)


# The target


def test_targets_that_cannot_be(conversion: Conversion, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for name in ("file", "full"):
        with pytest.raises(CheckpointError, match="already exists"):
            conversion(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"below.*: cannot be written"):
        conversion(tmp_path / "file" / "below")


def test_targets_that_are_empty_or_links(conversion: Conversion, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    conversion(tmp_path / "link")
    assert conversion.is_complete(tmp_path / "empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    conversion(Path("."))
    assert conversion.is_complete(tmp_path / "here")
