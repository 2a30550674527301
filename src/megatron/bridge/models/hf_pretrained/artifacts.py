"""The files of a model folder that are not weights."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, QUANTIZATION_FIELDS, JsonObject, read_config_json
from megatron.bridge.models.hf_pretrained.source import check_inside

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# Files that say how the weights are quantised.
_QUANTIZATION = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
# Weights in any format, their indexes, what a trainer leaves, and what a repository holds for its web page or for git.
_LEFT_OUT = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.npz",
    "*.pkl",
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "zero_to_fp32.py",
    "latest",
    "*.partial",
    "README*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "*.md",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.gif",
    "*.svg",
    "*.pdf",
    ".*",
)

_TOKENIZER = ("*token*", "vocab*", "*.model", "*.tiktoken")


def has_tokenizer_files(folder: Path) -> bool:
    """Whether a folder has files that look like a tokenizer's."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER)


def copy_artifacts(
    source_folder: str | Path,
    out_folder: str | Path,
    config: "PretrainedConfig | None" = None,
    with_quantization: bool = False,
) -> list[str]:
    """Copies everything in a model folder but its weights, so that the output loads like the source.

    The rule: every regular file at the top level of the folder is copied byte for byte, except weights and their
    indexes, states of training, documents and pictures, and hidden files (`_LEFT_OUT`). So generation config,
    tokenizer, chat templates, processor configs and custom code all come along, whatever they are called. The only
    folder that is copied is `additional_chat_templates`. A symbolic link is followed if it leads into the folder, or
    into the blobs of a model in the Hugging Face cache. One that leads elsewhere is an error, because a file that is
    not the model's could be published.

    Args:
        source_folder: the folder of the source model.
        out_folder: made if absent.
        config: written as `config.json` in place of the source's.
        with_quantization: also copy the files that say how the weights are quantised; usually these are written as
            numbers.

    Returns:
        The names of the written files, sorted.

    Raises:
        CheckpointError: there is no source folder, or a link leads outside it.
    """
    source, out = Path(source_folder), Path(out_folder)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder to copy the config and tokenizer from.")
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for folder in (source, source / "additional_chat_templates") for path in sorted(folder.glob("*"))]
    left_out = _LEFT_OUT if with_quantization else (*_LEFT_OUT, *_QUANTIZATION)
    written = []
    for path in paths:
        name = path.relative_to(source)
        if not path.is_file() or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in left_out):
            continue
        if config is not None and str(name) == CONFIG_NAME:
            continue
        check_inside(source, path)
        target = out / name
        target.parent.mkdir(exist_ok=True)
        if not (target.exists() and target.samefile(path)):
            target.unlink(missing_ok=True)  # it may be a link, and what it leads to is not ours to overwrite
            shutil.copyfile(path, target)
        written.append(str(name))
    if config is not None:
        save_config(config, out)
        written.append(CONFIG_NAME)
    return sorted(written)


def state_quantization(folder: Path, quantization: JsonObject | None, dtype: str | None = None) -> None:
    """Rewrites the folder's `config.json` so that it says how the weights are quantised.

    Args:
        quantization: the `quantization_config`; `None` for plain weights.
        dtype: the dtype to state for the weights; default: the one that the config states.
    """
    values = read_config_json(folder)
    if dtype is not None:
        values.pop("torch_dtype", None)
        values["dtype"] = dtype
    for level in (values, *(value for value in values.values() if isinstance(value, dict))):
        for name in QUANTIZATION_FIELDS:
            level.pop(name, None)
    if quantization:
        values[QUANTIZATION_FIELDS[0]] = quantization
    _write_config_json(folder, values)


def state_dtype(folder: Path, dtype: "torch.dtype | None") -> None:
    """Rewrites the folder's `config.json` if it states another dtype than `dtype`; without one, it is left alone."""
    values, name = read_config_json(folder), str(dtype).removeprefix("torch.")
    stated = {field: values[field] for field in ("dtype", "torch_dtype") if values.get(field)}
    if dtype is not None and any(value != name for value in stated.values()):
        _write_config_json(folder, values | dict.fromkeys(stated, name))


def _write_config_json(folder: Path, values: JsonObject) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_config(config: "PretrainedConfig", out_folder: str | Path) -> None:
    """Writes `config.json` as `save_pretrained` does, but without custom code, which is copied as a file instead."""
    path = Path(out_folder) / CONFIG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link, and what it leads to is not ours to overwrite
    config.to_json_file(str(path), use_diff=True)
