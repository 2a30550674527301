"""The staging folder by itself; what conversions make of it is tested by killing them (`test_crash_safety.py`)."""

import errno
import os

import pytest

from megatron.bridge.errors import CheckpointError
from megatron.bridge.transport import staging
from megatron.bridge.transport.staging import OutputFile, StagingFolder


def write_blocks(stream):
    for block in range(8):
        stream.write(bytes([block]) * 2**16)
    return {"num_blocks": 8}


def test_an_error_of_the_disk_beside_the_writing(tmp_path, monkeypatch):
    """The system tells of it once, to the synchronisation that runs while the file is still written."""
    right, failures = os.fdatasync, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(descriptor):
        if failures:
            raise failures.pop()
        right(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    monkeypatch.setattr(staging, "_SYNC_BYTES", 2**16)
    files = [OutputFile("a", write_blocks), OutputFile("b", write_blocks)]
    with pytest.raises(CheckpointError, match=os.strerror(errno.EIO)):
        StagingFolder(tmp_path / "out", 0).write_files(files, num_threads=1)
    assert failures == []
    assert not (tmp_path / "out").exists()

    again = StagingFolder(tmp_path / "out", 0)
    again.write_files(files)
    remembered = []
    assert again.publish(files, remembered.extend)
    assert remembered == [{"num_blocks": 8}] * 2
    assert (tmp_path / "out" / "a").read_bytes() == b"".join(bytes([block]) * 2**16 for block in range(8))
