"""Loading the `config.json` of a Hugging Face model folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import CheckpointError, UnsupportedConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_NAME = "config.json"


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """The folder's `config.json` as it stands, without importing transformers.

    Raises:
        CheckpointError: there is none, or it is not a JSON object.
    """
    path = Path(folder) / CONFIG_NAME
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {CONFIG_NAME}, so this is not a Hugging Face model folder. "
            "Give the folder that `save_pretrained` wrote."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: malformed JSON: {error}. Correct it, or fetch it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}. Fetch it again.")
    return values


def load_config(
    path: str | Path, *, trust_remote_code: bool = False, overrides: dict[str, Any] | None = None
) -> PretrainedConfig:
    """Loads a folder's config with transformers' `AutoConfig`.

    Overrides replace values of `config.json` before the config is made, so that what the config derives from them
    (`layer_types` from `num_hidden_layers`) follows. A dict for a nested config, such as `text_config`, replaces only
    the values it names.

    Raises:
        CheckpointError: no `config.json`, or malformed.
        UnsupportedModelError: transformers does not know its `model_type`, or the config's class is in the folder's
            own code and `trust_remote_code` is False.
        UnsupportedConfigError: transformers refuses a value, or an override names no field of the config.
    """
    from transformers import AutoConfig

    folder = Path(path)
    values = read_config_json(folder)
    _check_model_type(folder, values, trust_remote_code)
    config = _made(folder, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
    if overrides:
        _check_overrides(folder, values, config, overrides)
        merged = _merge(values, overrides)
        config = _made(folder, lambda: type(config).from_dict(merged, name_or_path=str(folder)))
    return config


def _made(folder: Path, make: Callable[[], PretrainedConfig]) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return make()
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedConfigError(f"{folder / CONFIG_NAME}: transformers refuses this config: {error}") from error
    except ImportError as error:  # custom code that needs a package which is not there
        raise UnsupportedModelError(f"{folder}: its custom code cannot be imported: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise CheckpointError(f"{folder}: transformers cannot load its config: {error}") from error  # absent code file


def _check_model_type(folder: Path, values: dict[str, Any], trust_remote_code: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = values.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    auto_class = (values.get("auto_map") or {}).get("AutoConfig")
    if auto_class is None:
        what = "has no `model_type`" if model_type is None else f"has the model_type {model_type!r}"
        raise UnsupportedModelError(
            f"{folder / CONFIG_NAME}: {what}, which this version of transformers does not "
            "know. Correct it, or install a version of transformers that knows it."
        )
    if not trust_remote_code:
        raise UnsupportedModelError(
            f"{folder}: its config class is custom code ({auto_class}, model_type "
            f"{model_type!r}), which is not run without leave. Read the code, then pass "
            "trust_remote_code=True."
        )


def _check_overrides(folder: Path, values: dict[str, Any], config: PretrainedConfig, overrides: dict[str, Any]) -> None:
    for name in overrides:
        if name not in values and not hasattr(config, name):
            close = difflib.get_close_matches(name, config.to_dict())
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UnsupportedConfigError(
                f"{folder / CONFIG_NAME}: {type(config).__name__} has no field {name!r} to override.{hint}"
            )


def _merge(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in overrides.items():
        nested = name.endswith("_config") and isinstance(value, dict) and isinstance(values.get(name), dict)
        merged[name] = {**values[name], **value} if nested else value
    return merged
