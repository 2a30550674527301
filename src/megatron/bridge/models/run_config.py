"""`run_config.yaml`: the provider of a Megatron checkpoint, as plain data.

The `model` section names the provider's class under `_target_` and gives the fields that differ from its defaults. How
the model was spread over the ranks that saved it is no part of it: the `layout` section tells, and nothing reads it.
Functions and dtypes are written as `{_target_: dotted.name, _call_: false}`. Reading instantiates nothing but provider
classes of this package, and resolves nothing but the names in an allow-list: the file is data.
"""

import copy
import dataclasses
import enum
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron.bridge.errors import CheckpointError
from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME

if TYPE_CHECKING:
    from megatron.core.transformer import MegatronModule

    from megatron.bridge.models.model_provider import ModelProviderMixin
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig

_PROVIDER_PREFIX = "megatron.bridge.models."
# Modules whose attributes a config may name: activation functions, dtypes, specs and megatron-core's enums.
_ALLOWED_MODULES = (
    "torch",
    "torch.nn.functional",
    "megatron.core.activations",
    "megatron.core.transformer.enums",
    "megatron.bridge.models.transformer.layer_specs",
    "megatron.bridge.models.transformer.activations",
)
_MAX_VALUES = 100_000
# Sizes beyond anything that exists, which would take all memory before they could be compared with the weights.
_MAX_SIZES = {"num_layers": 10_000, "num_attention_heads": 10_000, "kv_channels": 10_000, "num_moe_experts": 10_000}
# Fields that describe the machine or the moment rather than the model.
_RUNTIME_FIELDS = (
    "init_method",
    "output_layer_init_method",
    "embedding_init_method",
    "use_cpu_initialization",
    "perform_initialization",
    "init_model_with_meta_device",
    "timers",
    "param_sync_func",
    "grad_sync_func",
    "no_sync_func",
    "grad_scale_func",
    "finalize_model_grads_func",
    "transformer_impl",
    "config_logger_dir",
)


def write_run_config(folder: Path, provider: "DecoderConfig", hf_model_id: str | None = None) -> None:
    """Writes `run_config.yaml` for a provider.

    Args:
        folder: the iteration's folder.
        hf_model_id: hub id or folder that the model came from, kept for export.
    """
    model = copy.copy(provider)
    model.reset_layout()
    layout = {
        name: value if isinstance(value, bool | int | str) else str(value)
        for name, value in vars(provider).items()
        if vars(model)[name] is not value
    }
    content = {"model": provider_as_data(model), "layout": layout, "checkpoint": {"hf_model_id": hf_model_id}}
    (folder / RUN_CONFIG_NAME).write_text(yaml.safe_dump(content, sort_keys=False))


def provider_as_data(provider: "DecoderConfig") -> dict[str, Any]:
    """A provider's class and the fields that differ from its defaults, the same in every process.

    Raises:
        CheckpointError: a field cannot be written as data.
    """
    provider_class = type(provider)
    model: dict[str, Any] = {"_target_": f"{provider_class.__module__}.{provider_class.__qualname__}"}
    for field in dataclasses.fields(provider):
        value = getattr(provider, field.name)
        if field.name.startswith("_") or field.name in _RUNTIME_FIELDS or value == _default(field):
            continue
        model[field.name] = _encode(value, field.name)
    return model


def read_run_config(folder: Path) -> dict[str, Any]:
    """The content of `run_config.yaml`, as plain data.

    Raises:
        CheckpointError: no such file, or not YAML with a `model` section.
    """
    path = folder / RUN_CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {RUN_CONFIG_NAME}; give a checkpoint folder that was written with one")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2001-99-99 is no date
        raise CheckpointError(f"{path}: not valid YAML: {error!s:.1000}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path}: expected a mapping with a `model` section")
    if not isinstance(content.get("checkpoint") or {}, dict):
        raise CheckpointError(f"{path}: its `checkpoint` section is no mapping")
    _check_num_values(content, path)
    return content


def _check_num_values(content: Any, path: Path) -> None:
    """References (`*name`) can make a few lines stand for any number of values, even endlessly many."""
    waiting, num_values = [content], 0
    while waiting:
        value = waiting.pop()
        num_values += 1
        if num_values > _MAX_VALUES:
            raise CheckpointError(f"{path}: holds more than {_MAX_VALUES} values")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


class _Loader(yaml.SafeLoader):
    """Reads plain data, without merge keys (`<<`): a few lines of them can grow to any size."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys are not allowed", key.start_mark)
        super().flatten_mapping(node)


def read_provider(folder: Path) -> "ModelProviderMixin[MegatronModule]":
    """The provider that a checkpoint was written with, not finalised.

    Raises:
        CheckpointError: an unknown class, field or name.
    """
    path = folder / RUN_CONFIG_NAME
    model = dict(read_run_config(folder)["model"])
    target = model.pop("_target_", None)
    model.pop("config_logger_dir", None)  # a checkpoint does not choose where megatron-core writes its logs
    if not isinstance(target, str) or not target.startswith(_PROVIDER_PREFIX):
        raise CheckpointError(f"{path}: model._target_ must be a provider of {_PROVIDER_PREFIX}*, found {target!r}")
    from megatron.bridge.models.model_provider import ModelProviderMixin

    provider_class = _attribute(target, path)
    if not isinstance(provider_class, type) or not issubclass(provider_class, ModelProviderMixin):
        raise CheckpointError(f"{path}: {target} is no model provider")
    known = {field.name for field in dataclasses.fields(provider_class)}
    unknown = sorted(str(name) for name in set(model) - known)
    if unknown:
        raise CheckpointError(
            f"{path}: {target} has no field {', '.join(unknown)!s:.300}; the checkpoint was written by another version"
        )
    window = model.get("window_attention")
    for fields in (model, window if isinstance(window, dict) else {}):
        for name, largest in _MAX_SIZES.items():
            size = fields.get(name)
            if size is not None and not (type(size) is int and 1 <= size <= largest):
                raise CheckpointError(f"{path}: {name} must be a whole number from 1 to {largest}, found {size!r:.100}")
    provider = provider_class()
    for name, value in model.items():
        setattr(provider, name, _decode(value, path))
    provider.reset_layout()  # earlier versions wrote the layout into the same section
    return provider


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _encode(value: Any, name: str) -> Any:
    import torch

    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, torch.dtype):
        return {"_target_": str(value), "_call_": False}
    if isinstance(value, enum.Enum):
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}.{value.name}", "_call_": False}
    if isinstance(value, list | tuple):
        items = [_encode(item, name) for item in value]
        return items if isinstance(value, list) else {"_target_": "tuple", "_args_": items}
    if isinstance(value, dict):
        return {key: _encode(item, name) for key, item in value.items()}
    dotted = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if dotted.rpartition(".")[0] in _ALLOWED_MODULES:
        return {"_target_": dotted, "_call_": False}
    raise CheckpointError(f"{RUN_CONFIG_NAME}: field {name} holds {value!r}, which cannot be written as data")


def _decode(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_decode(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    if target is None:
        return {key: _decode(item, path) for key, item in value.items()}
    if target == "tuple" and isinstance(value.get("_args_", []), list):
        return tuple(_decode(item, path) for item in value.get("_args_", []))
    if value.get("_call_") is not False or not isinstance(target, str):
        raise CheckpointError(f"{path}: {target!r:.100} would be called; only names with `_call_: false` are allowed")
    return _attribute(target, path)


def _attribute(dotted: str, path: Path) -> Any:
    """Resolves a name in an allowed module, or a member of an enum there."""
    parts = dotted.split(".")
    for num_names in (1, 2):
        module, names = ".".join(parts[:-num_names]), parts[-num_names:]
        if module not in _ALLOWED_MODULES and not (num_names == 1 and module.startswith(_PROVIDER_PREFIX)):
            continue
        try:
            value: Any = importlib.import_module(module)
        except ImportError as error:
            raise CheckpointError(f"{path}: no {dotted:.200}: {error!s:.200}") from error
        for name in names:
            if name.startswith("_") or not hasattr(value, name):
                raise CheckpointError(f"{path}: no {dotted:.200}")
            owner, value = value, getattr(value, name)
        if num_names == 1 or (isinstance(owner, type) and issubclass(owner, enum.Enum)):
            return value
    raise CheckpointError(f"{path}: {dotted:.200} is outside the allowed modules ({', '.join(_ALLOWED_MODULES)})")
