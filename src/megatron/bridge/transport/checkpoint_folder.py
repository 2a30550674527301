"""The folder of a Megatron checkpoint: the files that identify it, and which iteration is the latest."""

import re
from pathlib import Path

from megatron.bridge.errors import CheckpointError

TRACKER_NAME = "latest_checkpointed_iteration.txt"
TOKENIZER_FOLDER = "tokenizer"
RUN_CONFIG_NAME = "run_config.yaml"
_ITERATION = re.compile(r"iter_(\d{7})")


def iteration_folder(path: str | Path) -> Path:
    """The folder that holds the weights: `path` itself, or its latest `iter_NNNNNNN`.

    Raises:
        CheckpointError: there is no such folder.
    """
    path = Path(path)
    if (path / "metadata.json").is_file() or (path / RUN_CONFIG_NAME).is_file():
        return path
    tracker = path / TRACKER_NAME
    if tracker.is_file():
        text = tracker.read_bytes()[:100].decode(errors="replace").strip()
        if not re.fullmatch("[0-9]{1,18}", text):
            raise CheckpointError(f"{tracker}: expected an iteration number, found {text!r}")
        folder = path / f"iter_{int(text):07d}"
        if folder.is_dir():
            return folder
        raise CheckpointError(f"{tracker}: names iteration {text}, but {folder} does not exist")
    iterations = sorted(child for child in path.glob("iter_*") if _ITERATION.fullmatch(child.name))
    if not iterations:
        is_hf = (path / "config.json").is_file()
        hint = ". It is a Hugging Face model, which `megatron-bridge import` converts" if is_hf else ""
        raise CheckpointError(
            f"{path}: no Megatron checkpoint (no {TRACKER_NAME}, iter_NNNNNNN or metadata.json){hint}"
        )
    return iterations[-1]
