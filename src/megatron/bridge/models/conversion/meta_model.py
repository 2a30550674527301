"""The whole model without memory: built on the meta device, only to learn what a checkpoint of it holds."""

import copy
import inspect
import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import nn

from megatron.bridge.errors import BridgeError, ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.model_provider import UNSHARDED
from megatron.bridge.models.placement import Parameter, read_entries
from megatron.bridge.transport import process_groups

# What megatron-core raises when a value of the config is of the wrong kind.
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    provider: Any, what: str = "the config", num_stored: int | None = None
) -> tuple[list[Parameter], Any, Mapping[str, bytes]]:
    """What a checkpoint of the whole model holds, read from a model without memory.

    Args:
        what: the model, named in errors.
        num_stored: how many tensors there are, if that is known; a model cannot have more layers.

    Returns:
        The parameters, the finalised config of the unsharded model, and the serialised non-tensor entries.

    Raises:
        UnsupportedConfigError: megatron-core refuses the config.
    """
    ensure_unsharded()
    if num_stored is not None and (provider.num_layers or 0) > num_stored:
        raise UnsupportedConfigError(
            f"{what}: the config has {provider.num_layers} layers, the weights are only {num_stored} tensors; "
            "correct the config"
        )
    provider = copy.deepcopy(provider)
    provider.transformer_layer_spec = partial(_layer_spec, provider.transformer_layer_spec)
    for name, value in {**UNSHARDED, "use_cpu_initialization": True, "perform_initialization": False}.items():
        setattr(provider, name, value)
    try:
        provider.finalize()
        with torch.device("meta"):
            state = provider.provide(pre_process=True, post_process=True).sharded_state_dict()
        return read_entries(state), provider, _objects(state)
    except BridgeError as error:
        raise type(error)(f"{what}: {error}") from error
    except _REFUSALS as error:
        raise UnsupportedConfigError(
            f"{what}: megatron-core cannot build the model of this config: {type(error).__name__}: {error!s:.500}"
        ) from error


class _SharedModuleExperts(SequentialMLP):
    """Experts that are all the same module: building each of them takes most of the time for a large model."""

    def __init__(self, num_local_experts: int, *args: Any, **kwargs: Any):
        super().__init__(1, *args, **kwargs)
        self.num_local_experts = num_local_experts
        self.local_experts: nn.ModuleList = nn.ModuleList([*self.local_experts] * num_local_experts)


def _layer_spec(layer_spec: Any, provider: Any, vp_stage: int | None = None) -> Any:
    """What `layer_spec` gives for the provider, with experts that share a module."""
    if callable(layer_spec):
        accepts_stage = "vp_stage" in inspect.signature(layer_spec).parameters
        layer_spec = layer_spec(provider, vp_stage=vp_stage) if accepts_stage else layer_spec(provider)
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


def _objects(state: Mapping[str, Any]) -> dict[str, bytes]:
    """The non-tensor entries that megatron-core's loader asks for, serialised.

    These are the common state, and an extra state per linear layer (empty without Transformer Engine's FP8).
    """
    common = ShardedObject("common_state", None, (1,), (0,))
    empty = _serialized([None])
    extra_states = {entry.unique_key: empty for entry in state.values() if isinstance(entry, ShardedObject)}
    return {common.unique_key: _serialized([{"iteration": 0}]), **extra_states}


def _serialized(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
