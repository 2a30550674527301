"""Whether a path is a Megatron checkpoint, and which Hugging Face model such a checkpoint came from."""

from pathlib import Path
from typing import NamedTuple

from megatron.bridge.errors import BridgeError, CheckpointError
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME
from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER, TRACKER_NAME, iteration_folder


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder has the files of a Megatron checkpoint or of one of its iterations, complete or not."""
    return any(folder.glob("iter_*")) or any((folder / name).is_file() for name in ("metadata.json", TRACKER_NAME))


def checkpoint_iteration(name: str | Path) -> Path | None:
    """The iteration's folder, if a name is that of a Megatron checkpoint; `None` for an HF folder or a hub id.

    Raises:
        CheckpointError: a folder that holds neither an HF model nor a Megatron checkpoint.
    """
    folder = Path(name)
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file():
        return None
    try:
        return iteration_folder(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: neither a Hugging Face model (no config.json) nor a Megatron checkpoint ({error})"
        ) from error


def kept_hf_folder(iteration: Path) -> Path | None:
    """The HF config and tokenizer that an iteration keeps beside its weights; `None` if it keeps no config."""
    folder = iteration / TOKENIZER_FOLDER
    return folder if (folder / CONFIG_NAME).is_file() else None


class CheckpointOrigin(NamedTuple):
    """A bridge of the HF model that a checkpoint came from, or, because of a `problem`, of the config that it keeps."""

    bridge: AutoBridge
    problem: str | None


def origin_of(checkpoint: str | Path, trust_remote_code: bool = False) -> CheckpointOrigin:
    """Which HF model a Megatron checkpoint came from: the model itself, or else the config kept with the weights.

    Args:
        checkpoint: the checkpoint, or one of its iterations.

    Raises:
        CheckpointError: there is no checkpoint, or it has neither.
    """
    iteration = iteration_folder(checkpoint)
    source = AutoBridge.get_hf_model_id_from_checkpoint(iteration)
    problem = "it does not say which Hugging Face model it came from"
    if source is not None:
        try:
            return CheckpointOrigin(AutoBridge.from_hf_pretrained(source, trust_remote_code=trust_remote_code), None)
        except BridgeError as error:
            problem = f"its source {source} cannot be used ({error})"
    kept = kept_hf_folder(iteration)
    if kept is None:
        raise CheckpointError(f"{checkpoint}: {problem}, and holds no copy of its config; pass --hf")
    return CheckpointOrigin(AutoBridge.from_hf_pretrained(kept, trust_remote_code=trust_remote_code), problem)
