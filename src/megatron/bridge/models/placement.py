"""Placement: which part of which whole Megatron weight this rank holds, as Megatron-Core itself states it.

`model.sharded_state_dict()` knows every layout (TP, PP, VPP, EP, ETP, padding, fused gates) and gives each weight one
canonical key, the same for the local and the Transformer Engine layer spec. Nothing is derived here: entries are only
renamed, from "key plus offsets on prepended layer and expert axes" to one name per weight. No data is touched, so the
model may be on the meta device.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer.module import MegatronModule
    from torch import Tensor

_LAYER_AXIS = re.compile(r"(\.layers)(?=\.(?!\d))")

# The ends of the names of weights that Megatron-Core and transformers hold in float32, whatever the model's dtype: the
# biases by which routers choose experts, where a rounded bias is another choice.
FLOAT32_WEIGHTS = (".router.expert_bias",)


@dataclass(frozen=True, slots=True)
class Shard:
    """A box of a whole Megatron weight, held on this rank.

    Attributes:
        box: the box in the whole weight.
        local_box: where the same elements lie in the rank's own parameter.
        key, global_shape, global_offset: the entry's name and place in a torch_dist checkpoint, where layers (and
            experts) may be stacked on prepended axes.
        is_main_replica: whether this rank is the one that saves these elements.
    """

    box: Box
    local_box: Box
    key: str
    global_shape: Shape
    global_offset: Shape
    is_main_replica: bool


@dataclass(slots=True)
class Parameter:
    """A Megatron parameter or persistent buffer on this rank.

    Attributes:
        name: the global name, in which layers and experts are counted over the whole model, as in a GPTModel with the
            Transformer Engine spec.
        param_name: the name in this rank's (unwrapped) model chunk.
        shape: the shape of the whole, unsharded weight.
        tensor: the rank's own data, perhaps on the meta device; `None` if only other ranks hold some.
    """

    name: str
    param_name: str
    shape: Shape
    dtype: "torch.dtype"
    tensor: "Tensor | None"
    vp_stage: int
    shards: list[Shard] = field(default_factory=list)


def read_placement(chunks: Sequence["MegatronModule"]) -> list[Parameter]:
    """The parameters that this rank's model chunks hold, in the model's order.

    Args:
        chunks: unwrapped model chunks, one per virtual pipeline stage.
    """
    return [
        parameter
        for vp_stage, chunk in enumerate(chunks)
        for parameter in read_entries(chunk, chunk.sharded_state_dict(), vp_stage)
    ]


def read_entries(chunk: "MegatronModule", state: Mapping[str, object], vp_stage: int = 0) -> list[Parameter]:
    """The parameters of one model chunk, from its `sharded_state_dict()`."""
    parameters = [parameter for name, entry in state.items() for parameter in _read_entry(name, entry, vp_stage)]
    if hasattr(chunk, "canonical_name"):  # a model of another class than GPTModel
        for parameter in parameters:
            parameter.name = chunk.canonical_name(parameter.name)  # type: ignore[operator]  # a method
    return parameters


def _read_entry(param_name: str, entry: object, vp_stage: int) -> Iterable[Parameter]:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica

    if isinstance(entry, ShardedTensorFactory):
        built = entry.build()
        parts = list(built.values()) if isinstance(built, dict) else list(built)
    elif isinstance(entry, ShardedTensor):
        parts = [entry]
    else:  # ShardedObject and local objects hold no weights
        return
    tensor = entry.data
    parameters: dict[str, Parameter] = {}  # a gated delta net's one projection is several weights in a checkpoint
    for part in parts:
        assert tensor is not None and part.data is not None, f"{param_name}: a model's own entries have data"
        num_prepended = part.prepend_axis_num
        name = canonical_name(part.key, part.global_offset[:num_prepended])
        shape = tuple(part.global_shape[num_prepended:])
        parameter = parameters.setdefault(name, Parameter(name, param_name, shape, part.dtype, tensor, vp_stage))
        offset = part.global_offset[num_prepended:]
        box = tuple((start, start + size) for start, size in zip(offset, part.local_shape, strict=True))
        parameter.shards.append(
            Shard(
                box=box,
                local_box=_box_of_view(tensor, part.data),
                key=part.key,
                global_shape=tuple(part.global_shape),
                global_offset=tuple(part.global_offset),
                is_main_replica=is_main_replica(part.replica_id),
            )
        )
    yield from parameters.values()


def canonical_name(key: str, prepended_offset: Sequence[int]) -> str:
    """The global parameter name of a checkpoint key and its offsets on the prepended axes.

    `("decoder.layers.mlp.linear_fc2.weight", (3,))` is `decoder.layers.3.mlp.linear_fc2.weight`;
    `("decoder.layers.mlp.experts.experts.linear_fc1.weight", (3, 7))` is
    `decoder.layers.3.mlp.experts.linear_fc1.weight7`, the name that grouped experts use.
    """
    offsets = list(prepended_offset)
    if offsets and _LAYER_AXIS.search(key):
        key = _LAYER_AXIS.sub(rf"\1.{offsets.pop(0)}", key, count=1)
    key = key.replace(".experts.experts.", ".experts.")
    if offsets:
        key = f"{key}{offsets.pop(0)}"
    assert not offsets, f"{key}: prepended axes that are neither layers nor experts"
    return key


def _box_of_view(tensor: "Tensor", view: "Tensor") -> Box:
    """Where `view` lies in `tensor`, computed from storage offsets, which meta tensors have too."""
    if view.numel() == 0:
        return tuple((0, size) for size in view.shape)
    strides = tensor.stride()
    assert view.stride() == strides and view.device == tensor.device, "a shard must be a view of its parameter"
    offset = int(view.storage_offset() - tensor.storage_offset())
    starts = []
    for stride in strides:
        start, offset = divmod(offset, stride)
        starts.append(start)
    return tuple((start, start + size) for start, size in zip(starts, view.shape, strict=True))
