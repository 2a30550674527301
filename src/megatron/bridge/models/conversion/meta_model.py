"""The whole model without memory, built on the meta device only to learn what a checkpoint of it holds."""

import copy
import io
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import nn

from megatron.bridge.errors import BridgeError, ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.conversion.provider_checks import check_provider
from megatron.bridge.models.model_provider import Provider
from megatron.bridge.models.placement import Parameter, read_entries
from megatron.bridge.models.transformer.layer_specs import DecoderSpec, DecoderSpecBuilder, built_spec
from megatron.bridge.transport import process_groups

# What megatron-core, and transformers for scaled rope, raise when they cannot work with a value of the config.
_REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    StrictDataclassError,
)  # fmt: skip
# The whole model, without weights.
_ON_META_DEVICE = {"use_cpu_initialization": True, "perform_initialization": False, "_pg_collection": None}


def ensure_unsharded() -> None:
    """Makes sure that this process can build a whole model: process groups of size 1, made here if there are none.

    Raises:
        ParallelLayoutError: this process works with sharded process groups.
    """
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        process_groups.initialize()
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
    )
    if sizes != (1, 1, 1):
        raise ParallelLayoutError(
            f"offline conversion needs process groups of tensor, pipeline and expert size 1, found {sizes}; run it in "
            "a process of its own, or save or load the live model instead"
        )


def meta_placement(
    provider: "Provider", name: str = "the config", num_stored: int | None = None
) -> tuple[list[Parameter], "Provider", Mapping[str, bytes]]:
    """What a checkpoint of the whole model holds, read from a model without memory.

    Args:
        name: of the model, for errors.
        num_stored: the number of stored tensors, if known; a model cannot have more layers than that.

    Returns:
        The parameters, the finalised config of the unsharded model, and the serialised non-tensor entries.

    Raises:
        UnsupportedConfigError: a value of the wrong type, or one that megatron-core (or transformers, for scaled rope)
            refuses. An error in this package's own code says nothing about the config, and is left alone.
    """
    ensure_unsharded()
    provider = copy.deepcopy(provider)
    layer_spec = vars(provider)["transformer_layer_spec"]
    changes: dict[str, object] = {**_ON_META_DEVICE, "transformer_layer_spec": partial(_layer_spec, layer_spec)}
    try:
        check_provider(provider)
        _check_num_layers(provider, num_stored)
        provider.reset_layout()
        for field, value in changes.items():
            setattr(provider, field, value)
        provider.finalize()
        with torch.device("meta"):
            model = provider.provide(pre_process=True, post_process=True)
            state = model.sharded_state_dict()
        return read_entries(model, state), provider, _objects(state)
    except BridgeError as error:
        raise type(error)(f"{name}: {error}") from error
    except _REFUSALS as error:
        library = _library_of(error)
        if library is None:
            raise
        raise UnsupportedConfigError(
            f"{name}: {library} cannot build the model of this config: {type(error).__name__}: {error!s:.500}"
        ) from error


def _check_num_layers(provider: "Provider", num_stored: int | None) -> None:
    num_layers = provider.num_layers + (provider.mtp_num_layers or 0)
    if num_stored is not None and num_layers > num_stored:
        raise UnsupportedConfigError(
            f"the config has {num_layers} layers, the weights are only {num_stored} tensors; correct the config"
        )


def _library_of(error: Exception) -> str | None:
    """The library that raised the error, itself or in what it called (torch); `None` for this package's own code."""
    libraries = {
        "megatron.core": "megatron-core",
        "transformers": "transformers",
        "huggingface_hub": "transformers",  # which checks the fields of transformers' configs
        "megatron.bridge": None,
    }
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    raised_in = [library for module in modules for library in libraries if module.startswith(f"{library}.")]
    return libraries[raised_in[-1]]


class _SharedModuleExperts(SequentialMLP):
    """Experts that are all the same module: building each of them takes most of the time for a large model."""

    def __init__(self, num_local_experts: int, *args: Any, **kwargs: Any):
        super().__init__(1, *args, **kwargs)
        self.num_local_experts = num_local_experts
        self.local_experts: nn.ModuleList = nn.ModuleList([*self.local_experts] * num_local_experts)


def _layer_spec(
    layer_spec: "DecoderSpec | DecoderSpecBuilder", provider: "Provider", vp_stage: int | None = None
) -> "DecoderSpec":
    """The spec that `layer_spec` is or makes, with experts that share a module."""
    layer_spec = built_spec(layer_spec, provider, vp_stage)
    # Layers of a block, the one kind of layer, or the kinds of layers of a stack.
    submodules: Any = getattr(layer_spec, "submodules", None)
    kinds = vars(submodules).values() if submodules is not None else ()
    for layer in (*getattr(layer_spec, "layer_specs", ()), layer_spec, *kinds):
        mlp = getattr(getattr(layer, "submodules", None), "mlp", None)
        submodules = mlp.keywords.get("submodules") if isinstance(mlp, partial) else None
        experts = getattr(submodules, "experts", None)
        if isinstance(experts, partial) and experts.func is SequentialMLP:
            submodules.experts = partial(_SharedModuleExperts, *experts.args, **experts.keywords)
    return layer_spec


def _objects(state: Mapping[str, object]) -> dict[str, bytes]:
    """The non-tensor entries that megatron-core's loader asks for, serialised.

    These are the common state, and an extra state per linear layer (empty without Transformer Engine's FP8).
    """
    common = ShardedObject("common_state", None, (1,), (0,))
    empty = _serialized([None])
    extra_states = {entry.unique_key: empty for entry in state.values() if isinstance(entry, ShardedObject)}
    return {common.unique_key: _serialized([{"iteration": 0}]), **extra_states}


def _serialized(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
