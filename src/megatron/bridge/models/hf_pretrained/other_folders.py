"""Folders that are taken for a model's: what training tools and downloads leave, and how to make a model of it.

Nothing here imports torch or transformers.
"""

import fnmatch
import json
import re
from contextlib import suppress
from pathlib import Path

from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME, TRACKER_NAME

ADAPTER_CONFIG_NAME = "adapter_config.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Pickles that are no weights: states of optimizers, schedulers and random numbers.
_TRAINING_STATE = ("training_args*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "adapter_*")
_MAX_NAMES = 5


def what_it_holds(folder: Path) -> str:
    """What a folder without safetensors weights or without `config.json` holds instead, and the next step.

    Returns:
        Sentences that go on after the folder's name; empty if there is nothing that is known.
    """
    finders = (
        adapter, _megatron_checkpoint, _pickled, _deepspeed, _fsdp,
        _gguf, _model_folders_inside, _other_pickles, _foreign,
    )  # fmt: skip
    return next((text for find in finders if (text := find(folder))), "")


def adapter(folder: Path) -> str:
    """What to do with a peft adapter; empty if the folder has none."""
    path = folder / ADAPTER_CONFIG_NAME
    if not path.is_file():
        return ""
    base = None
    with suppress(ValueError, AttributeError, RecursionError):
        base = json.loads(path.read_bytes()).get("base_model_name_or_path")
    merge = _python("peft", "AutoPeftModelForCausalLM", folder, f"{folder}-merged", then=".merge_and_unload()")
    of = f" of the model {base}" if isinstance(base, str) and base else ""
    has_model = any(folder.glob("model*.safetensors"))
    beside = f" If the weights in the folder are merged already, remove {ADAPTER_CONFIG_NAME}." if has_model else ""
    return (
        f"holds a peft adapter{of} ({ADAPTER_CONFIG_NAME}), which transformers would apply to the model. Merge the two "
        f"first: {merge}.{beside}"
    )


def conversion(name: Path | str, out: Path | str, argument: str = "") -> str:
    """The command that has transformers write a model again, with safetensors weights."""
    return _python("transformers", "AutoModelForCausalLM", name, out, argument)


def _python(package: str, cls: str, name: Path | str, out: Path | str, argument: str = "", then: str = "") -> str:
    call = f"M.from_pretrained('{name}', {argument}dtype='auto'){then}.save_pretrained('{out}')"
    return f'`python -c "from {package} import {cls} as M; {call}"`'


def _named(folder: Path, *patterns: str) -> list[str]:
    """The files of the folder that match a pattern and are no training state, sorted."""
    names = sorted(path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _TRAINING_STATE)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def _megatron_checkpoint(folder: Path) -> str:
    if not any((folder / name).exists() for name in (TRACKER_NAME, RUN_CONFIG_NAME)):
        return ""
    return (
        "holds a Megatron checkpoint, not a Hugging Face model. `megatron-bridge export` makes one of it; other "
        "commands take it as the checkpoint."
    )


def _pickled(folder: Path) -> str:
    names = _named(folder, "pytorch_model*.bin")
    if not names:
        return ""
    return (
        f"holds only pickled weights ({_some(names)}), which are never unpickled here. Convert them to safetensors, "
        f"which are written beside them: {conversion(folder, folder)}."
    )


def _deepspeed(folder: Path) -> str:
    if not ((folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step*/*_states.pt"))):
        return ""
    return (
        "holds the weights only as DeepSpeed's partitions. Put them together: "
        f"`cd {folder} && python zero_to_fp32.py . . --safe_serialization`."
    )


def _fsdp(folder: Path) -> str:
    parts = sorted(path.parent for path in folder.glob("pytorch_model_fsdp*/.metadata"))
    if not parts:
        return ""
    return (
        f"holds the weights only as FSDP's shards. Put them together: `accelerate merge-weights {parts[0]} {folder}`."
    )


def _gguf(folder: Path) -> str:
    names = _named(folder, "*.gguf")
    if not names:
        return ""
    convert = conversion(folder, f"{folder}-hf", f"gguf_file='{names[0]}', ")
    return f"holds GGUF weights ({_some(names)}). Give the model that they were made from, or convert them: {convert}."


def _model_folders_inside(folder: Path) -> str:
    inside = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    found = {path.parent for path in inside} | {path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG_NAME}")}
    if not found:
        return ""
    names = sorted((str(path.relative_to(folder)) for path in found), key=_natural, reverse=True)
    return f"holds other folders, which are models: {_some(names)}. Give one of them, such as {folder / names[0]}."


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _other_pickles(folder: Path) -> str:
    names = _named(folder, *_PICKLES)
    if not names:
        return ""
    return (
        f"holds only pickled weights ({_some(names)}), under names that transformers does not read either. Load them "
        "where they were made, and write the model with `save_pretrained`."
    )


def _foreign(folder: Path) -> str:
    names = _named(folder, "consolidated*", "original/consolidated*", "*.h5", "*.msgpack", "*.onnx", "*.npz")
    if not names:
        return ""
    return (
        f"holds weights in a format that transformers does not read ({_some(names)}). Fetch the model*.safetensors "
        "files of the model's repository."
    )
