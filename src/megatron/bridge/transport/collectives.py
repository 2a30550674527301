"""Collectives that move weights: every rank gives the boxes that it owns, and receives those of all ranks."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.bridge.transport.boxes import Box, slices
from megatron.bridge.transport.process_groups import all_gather_object, rank, world_size

__all__ = ["all_gather_object", "broadcast_from_last_stage", "gather_parts"]

# Parts start at multiples of this in a buffer, so that they can be viewed in their own dtype.
_ALIGNMENT = 16

Parts = list[tuple[Box, "Tensor"]]


class HeldBox(Protocol):
    """A box of a whole weight, and where its elements lie in the parameter of the rank that holds it."""

    @property
    def box(self) -> Box: ...
    @property
    def local_box(self) -> Box: ...


class DistributedWeight(Protocol):
    """A weight whose boxes are spread over ranks: what `gather_parts` reads of a conversion task."""

    @property
    def global_param_name(self) -> str: ...
    @property
    def param_weight(self) -> "Tensor | None": ...
    @property
    def dtype(self) -> torch.dtype | None: ...
    @property
    def shards(self) -> Sequence[HeldBox]: ...
    @property
    def owners(self) -> Mapping[Box, int]: ...


def gather_parts(tasks: Sequence[DistributedWeight]) -> list[Parts]:
    """The whole weight of each task, as boxes with their tensors.

    Costs one broadcast per rank that owns something, however many tasks there are.

    Args:
        tasks: the same on every rank, with `owners` filled.

    Returns:
        For each task, the boxes that cover its weight, with their tensors. On a single rank these are views.
    """
    me = rank()
    if world_size() == 1:
        return [[(box, _own_part(task, box)) for box in task.owners] for task in tasks]
    gathered: list[Parts] = [[] for _ in tasks]
    for owner in sorted({owner for task in tasks for owner in task.owners.values()}):
        items = [(i, box) for i, task in enumerate(tasks) for box, held_by in task.owners.items() if held_by == owner]
        sizes = [_num_bytes(tasks[i], box) for i, box in items]
        starts = _starts(sizes)
        buffer = torch.empty(starts[-1], dtype=torch.uint8, device=_device(tasks))
        if owner == me:
            for (i, box), start, size in zip(items, starts, sizes, strict=False):
                part = _own_part(tasks[i], box).to(tasks[i].dtype).contiguous()
                buffer[start : start + size].copy_(part.view(-1).view(torch.uint8))
        dist.broadcast(buffer, src=owner)
        for (i, box), start, size in zip(items, starts, sizes, strict=False):
            shape = [stop - begin for begin, stop in box]
            dtype = tasks[i].dtype
            assert dtype is not None
            gathered[i].append((box, buffer[start : start + size].view(dtype).view(shape)))
    return gathered


def broadcast_from_last_stage(tensor: "Tensor | None", shape: Sequence[int], device: torch.device) -> "Tensor":
    """The last pipeline stage's tensor as float32, on every stage.

    Args:
        tensor: the last stage's tensor; what other stages pass is ignored.
        shape: its shape.
        device: where the other stages receive it.
    """
    from megatron.core import parallel_state

    is_last = parallel_state.is_pipeline_last_stage()
    received = tensor.float().contiguous() if is_last and tensor is not None else torch.empty(*shape, device=device)
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(received, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return received


def _own_part(task: DistributedWeight, box: Box) -> "Tensor":
    weight = task.param_weight
    assert weight is not None, f"{task.global_param_name}: this rank owns a part of it but the task has no weight"
    local_box = next(shard.local_box for shard in task.shards if shard.box == box)
    return weight.detach()[slices(local_box)]


def _num_bytes(task: DistributedWeight, box: Box) -> int:
    assert task.dtype is not None
    return prod(stop - start for start, stop in box) * task.dtype.itemsize


def _starts(sizes: Sequence[int]) -> list[int]:
    """The aligned start of each part, and the total size at the end."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT)
    return starts


def _device(tasks: Sequence[DistributedWeight]) -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
