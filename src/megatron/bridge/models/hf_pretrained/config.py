"""Loading the `config.json` of a Hugging Face model folder."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import CheckpointError, UnsupportedConfigError, UnsupportedModelError
from megatron.bridge.models.hf_pretrained.config_aliases import known_config_type
from megatron.bridge.models.hf_pretrained.config_overrides import check_in_force, merged
from megatron.bridge.models.hf_pretrained.other_folders import what_it_holds
from megatron.bridge.runtime import startup

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# An object of a JSON file. Its values may be anything until they are checked.
type JsonObject = Mapping[str, Any]

CONFIG_NAME = "config.json"
# Fields that say how the weights are quantised.
QUANTIZATION_FIELDS = ("quantization_config", "compression_config")

# Larger sizes than these do not exist, and would take all memory before they could be compared with the weights.
_MAX_SIZES = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 10_000,
    "hidden_size": 10_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 1_000_000_000,
}
# The same for numbers of experts; there may be none.
_MAX_EXPERTS = 10_000
_NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# What transformers raises when a value is of the wrong kind.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """The content of the folder's `config.json`, as it stands. Does not import transformers.

    Raises:
        CheckpointError: there is none, or it is not a JSON object.
    """
    path = Path(folder) / CONFIG_NAME
    try:
        values = json.loads(path.read_bytes(), object_hook=_special_float)
    except FileNotFoundError as error:
        held = what_it_holds(Path(folder))
        next_step = f"It {held}" if held else "Give the folder that `save_pretrained` wrote."
        raise CheckpointError(
            f"{folder}: no {CONFIG_NAME}, so this is not a Hugging Face model folder. {next_step}"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed JSON: {error!s:.300}. Correct it, or fetch it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}. Fetch it again.")
    return values


def _special_float(values: dict[str, Any]) -> object:
    """What transformers writes for infinity, which JSON lacks, is `{"__float__": "Infinity"}`."""
    return float(values["__float__"]) if values.keys() == {"__float__"} else values


@startup.lean_imports()
def load_config(
    path: str | Path, *, trust_remote_code: bool = False, overrides: JsonObject | None = None
) -> "PretrainedConfig":
    """Loads a folder's config with transformers' `AutoConfig`.

    If transformers does not know the `model_type`, but a family states that it equals another (`kimi_k2` is
    `deepseek_v3`), the config is read with that one's config class, and the folder's own code is not run.

    Overrides replace values of `config.json` before the config is made, so that what the config derives from them
    (`layer_types` from `num_hidden_layers`) follows: `load_config(path, overrides={"num_hidden_layers": 2})`. For a
    rotary embedding, however it is spelled, and a nested config, they replace only the values that they name.

    Raises:
        CheckpointError: there is no `config.json`, or it is malformed.
        UnsupportedModelError: transformers does not know the `model_type`, or the config's class is in the folder's
            own code and `trust_remote_code` is False.
        UnsupportedConfigError: transformers refuses a value, or an override names no field of the config, contradicts
            another, or has no effect.
    """
    from transformers import AutoConfig

    folder = Path(path)
    values = read_config_json(folder)
    known_class = _known_class(values)
    if known_class is None:
        _check_model_type(folder, values, trust_remote_code)
    _check_values(folder, values)
    if known_class is not None:
        config = make_config(str(folder / CONFIG_NAME), lambda: known_class.from_dict(values, name_or_path=str(folder)))
    else:
        with _one_process_at_a_time():
            config = make_config(
                str(folder / CONFIG_NAME),
                lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code),
            )
    if overrides:
        where = str(folder / CONFIG_NAME)
        new_values = merged(values, config, overrides, where)
        _check_values(folder, new_values)
        config = make_config(
            str(folder / CONFIG_NAME), lambda: type(config).from_dict(new_values, name_or_path=str(folder))
        )
        check_in_force(config, overrides, where)
    return config


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """For custom code, which transformers copies into a folder of its cache: another rank could import half a copy."""
    from filelock import FileLock
    from transformers.utils import HF_MODULES_CACHE

    os.makedirs(HF_MODULES_CACHE, exist_ok=True)
    with FileLock(os.path.join(HF_MODULES_CACHE, "megatron-bridge.lock")):
        yield


def quantization_config(values: JsonObject) -> dict[str, Any]:
    """What a `config.json` says about quantised weights, of the model or of its text part; empty if nothing."""
    parts = [value for value in values.values() if isinstance(value, dict)]
    for level in (values, *parts):
        for name in QUANTIZATION_FIELDS:
            if isinstance(level.get(name), dict) and level[name]:
                return dict(level[name])
    return {}


def remove_quantization(config: "PretrainedConfig") -> dict[str, Any]:
    """Removes from a config what it says about quantised weights, and returns that (see `quantization_config`)."""
    removed = quantization_config(config.to_dict())
    parts = [part for part in vars(config).values() if hasattr(part, "to_dict")]
    for level in (config, *parts):
        for name in QUANTIZATION_FIELDS:
            vars(level).pop(name, None)
    return removed


def make_config(where: str, make: "Callable[[], PretrainedConfig]") -> "PretrainedConfig":
    """What `make` returns; what transformers raises there becomes an error of this package, with the name `where`.

    Raises:
        UnsupportedConfigError: transformers refuses a value.
        UnsupportedModelError: custom code needs a package that is not there.
        CheckpointError: custom code is not there.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return make()
    except (StrictDataclassError, *_REFUSALS) as error:
        raise UnsupportedConfigError(
            f"{where}: transformers refuses this config: {type(error).__name__}: {error!s:.1000}"
        ) from error
    except ImportError as error:
        raise UnsupportedModelError(f"{where}: its custom code cannot be imported: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise CheckpointError(f"{where}: transformers cannot load the config: {error}") from error


def _known_class(values: JsonObject) -> "type[PretrainedConfig] | None":
    """The config class that a family states for this `model_type`, if transformers does not know it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type in CONFIG_MAPPING:
        return None
    known = known_config_type(model_type, values.get("architectures"))
    return None if known is None else CONFIG_MAPPING[known]


def _check_model_type(folder: Path, values: JsonObject, trust_remote_code: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return
    auto_map = values.get("auto_map")
    auto_class = auto_map.get("AutoConfig") if isinstance(auto_map, dict) else None
    if auto_class is None:
        complaint = "has no `model_type`" if model_type is None else f"has the model_type {model_type!r:.100}"
        raise UnsupportedModelError(
            f"{folder / CONFIG_NAME}: {complaint}, which this version of transformers does not "
            "know. Correct it, or install a version of transformers that knows it."
        )
    if not trust_remote_code:
        raise UnsupportedModelError(
            f"{folder}: its config class is custom code ({auto_class}, model_type "
            f"{model_type!r}), which is not run without leave. Read the code, then pass "
            "trust_remote_code=True."
        )


def _check_values(folder: Path, values: JsonObject) -> None:
    """Checks that names are names, and that the sizes of the model and its parts (`text_config`, ...) can exist."""
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UnsupportedConfigError(
            f"{folder / CONFIG_NAME}: architectures must be a list of names, found {architectures!r:.100}"
        )
    for name in ("dtype", "torch_dtype"):
        if not isinstance(values.get(name) or "", str):
            raise UnsupportedConfigError(f"{folder / CONFIG_NAME}: {name} must be a name, found {values[name]!r:.100}")
    parts = {"": values} | {f"{name}.": part for name, part in values.items() if isinstance(part, dict)}
    for prefix, part in parts.items():
        for name, largest in _MAX_SIZES.items():
            size = part.get(name)
            if size is not None and not (type(size) is int and 1 <= size <= largest):
                raise UnsupportedConfigError(
                    f"{folder / CONFIG_NAME}: {prefix}{name} must be a whole number from 1 to {largest}, "
                    f"found {size!r:.100}"
                )
        for name in _NUMBERS_OF_EXPERTS:
            number = part.get(name)
            if type(number) is int and not 0 <= number <= _MAX_EXPERTS:
                raise UnsupportedConfigError(
                    f"{folder / CONFIG_NAME}: {prefix}{name} must be from 0 to {_MAX_EXPERTS}, found {number}"
                )
