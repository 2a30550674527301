"""The rest of a torch_dist checkpoint that lies: entries that are no tensors, `metadata.json` and the tracker file."""

import copy
import os
import pickle
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron.bridge import AutoBridge
from megatron.bridge.verification import verify_checkpoints
from tests.unit_tests.hostile import test_hostile_torch_dist as cases
from tests.unit_tests.hostile.attempts import attempt, must_fail
from tests.unit_tests.hostile.test_hostile_torch_dist import ORIGINALS, Call, read_all, saved

# The fixtures of the other module serve this one too.
originals, folder, _originals = cases.originals, cases.folder, cases._originals

# Entries that are no tensors, which megatron-core's own loader unpickles


def _load_live(hf: Path, checkpoint: Path) -> None:
    AutoBridge.from_hf_pretrained(hf).load_megatron_model(checkpoint)


@pytest.mark.parametrize("key", ["common_state/shard_0_1", "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"])
def test_objects_that_call_something(key: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    metadata = dcp.FileSystemReader(folder).read_metadata()
    place = metadata.storage_data[MetadataIndex(key)]
    path = folder / place.relative_path
    content = saved([Call(os.system, f"touch {marker}")])
    place = copy.copy(place)
    object.__setattr__(place, "offset", path.stat().st_size)
    object.__setattr__(place, "length", len(content))
    metadata.storage_data[MetadataIndex(key)] = place
    with path.open("ab") as file:
        file.write(content)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    error = attempt(lambda: _load_live(ORIGINALS[0] / "hf", folder.parent), path)
    assert error is not None and key in str(error)
    assert not marker.exists()
    assert verify_checkpoints(folder, ORIGINALS[0] / "hf").equal  # which does not read them


# metadata.json and the tracker

CONFIGS = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "open": b"{",
    "number": b"5",
    "not UTF-8": b'{"sharded_backend": "\xff"}',
    "deep lists": b"[" * 100_000,
    "another backend": b'{"sharded_backend": "zarr", "sharded_backend_version": 1}',
    "another version": b'{"sharded_backend": "torch_dist", "sharded_backend_version": 2}',
    "version a string": b'{"sharded_backend": "torch_dist", "sharded_backend_version": "1"}',
    "version an object": b'{"sharded_backend": "torch_dist", "sharded_backend_version": {}}',
    "backend a list": b'{"sharded_backend": ["torch_dist"]}',
    "backend null": b'{"sharded_backend": null, "sharded_backend_version": 1}',
    "pickle": pickle.dumps({"sharded_backend": "torch_dist"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_backend(name: str, folder: Path) -> None:
    (folder / "metadata.json").write_bytes(CONFIGS[name])
    must_fail(lambda: read_all(folder), folder / "metadata.json")
    must_fail(lambda: _load_live(ORIGINALS[0] / "hf", folder.parent), folder / "metadata.json")


TRACKERS = {
    "empty": b"",
    "text": b"latest",
    "negative": b"-1",
    "fraction": b"0.5",
    "superscript": "\u00b2".encode(),
    "other digits": "\u0660".encode(),
    "not UTF-8": b"\xff\xfe",
    "NUL byte": b"0\0",
    "two lines": b"0\n0",
    "5000 digits": b"1" * 5000,
    "absent iteration": b"7",
    "large": b"9" * 18,
    "path": b"../iter_0000000",
    "release": b"release",
    "gigabyte": b"0" * 10_000_000,
}


@pytest.mark.parametrize("name", TRACKERS)
def test_tracker(name: str, folder: Path) -> None:
    tracker = folder.parent / "latest_checkpointed_iteration.txt"
    tracker.write_bytes(TRACKERS[name])
    must_fail(lambda: verify_checkpoints(folder.parent, ORIGINALS[0] / "hf"), tracker)
    must_fail(lambda: _load_live(ORIGINALS[0] / "hf", folder.parent), tracker)
