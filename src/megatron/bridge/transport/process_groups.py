"""Process groups: starting `torch.distributed` and megatron-core's parallel state, and small collectives on objects.

Sizes are numbers of ranks: `tp` tensor, `pp` pipeline, `vpp` virtual pipeline (model chunks per rank), `cp` context,
`ep` expert, `etp` expert tensor parallel.
"""

import os
import random
from datetime import timedelta
from typing import Any, NamedTuple, cast

import numpy
import torch
import torch.distributed as dist

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.runtime import capabilities
from megatron.bridge.transport.launcher import launch as launch

# What megatron-core's parallel state cannot tell: the further arguments that it was made with, and the seed.
_arguments: dict[str, object] = {}
_seed: int | None = None


class _Layout(NamedTuple):
    """The parallel sizes, under the names of `megatron.core.parallel_state.initialize_model_parallel`."""

    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None
    context_parallel_size: int
    expert_model_parallel_size: int
    expert_tensor_parallel_size: int


def launched_by_torchrun() -> bool:
    """Whether this process is one rank of a launcher that sets torchrun's environment."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def is_initialized() -> bool:
    """Whether `torch.distributed` has a default group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's global rank; 0 before `initialize`."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """The number of ranks; 1 before `initialize`."""
    return dist.get_world_size() if is_initialized() else 1


def barrier() -> None:
    """Waits for all ranks; does nothing before `initialize`."""
    if is_initialized():
        dist.barrier()


def broadcast_object[T](obj: T | None, src: int = 0) -> T:
    """The picklable `obj` of rank `src`, on every rank; what other ranks pass is ignored."""
    box = [obj]
    if is_initialized():
        dist.broadcast_object_list(box, src=src, device=_object_device())
    return cast(T, box[0])


def all_gather_object[T](obj: T) -> list[T]:
    """Every rank's picklable `obj`, in rank order, on every rank: `all_gather_object(rank())` is `[0, 1, ...]`."""
    if not is_initialized():
        return [obj]
    objects = [obj] * world_size()
    dist.all_gather_object(objects, obj)
    return objects


def _object_device() -> torch.device:
    return capabilities.device() if dist.get_backend() == "nccl" else torch.device("cpu")


def initialize(
    tp: int = 1,
    pp: int = 1,
    vpp: int | None = None,
    cp: int = 1,
    ep: int = 1,
    etp: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Starts `torch.distributed` (unless it is started) and megatron-core's model-parallel state; seeds the generators.

    Under torchrun the ranks come from its environment; without it, this process is the only rank and opens no port.
    A second call with the same arguments does nothing; with another seed, it only seeds; with another layout, it makes
    new model-parallel groups, and models built on the old ones must no longer be used. State that the caller has made
    with `initialize_model_parallel` is kept if its layout is this one.

    Args:
        seed: pipeline stage `i` gets `seed + 100 * i`, as in Megatron-LM, so that stages start from different weights.
        **kwargs: passed to `megatron.core.parallel_state.initialize_model_parallel` (`order`,
            `distributed_timeout_minutes`, ...).

    Raises:
        ParallelLayoutError: the sizes do not divide the number of ranks.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    global _arguments, _seed
    layout = _Layout(tp, pp, None if vpp == 1 else vpp, cp, ep, tp if etp is None else etp)
    _check_layout(dist.get_world_size() if is_initialized() else _env_world_size(), layout)
    if not is_initialized():
        _init_process_group(kwargs.get("distributed_timeout_minutes"))
    if not (parallel_state.model_parallel_is_initialized() and _current_layout() == layout and _arguments == kwargs):
        _destroy_model_parallel()
        parallel_state.initialize_model_parallel(**layout._asdict(), **kwargs)
        _arguments = kwargs
    elif get_cuda_rng_tracker().is_initialized() and _seed in (seed, None):
        return
    _seed_generators(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())
    _seed = seed


def destroy() -> None:
    """Ends the model-parallel state and `torch.distributed`, as if `initialize` had never been called."""
    if is_initialized():
        _destroy_model_parallel()
        dist.destroy_process_group()


def _env_world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched_by_torchrun() else 1


def _current_layout() -> _Layout:
    from megatron.core import parallel_state

    return _Layout(
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
        parallel_state.get_expert_tensor_parallel_world_size(),
    )


def _check_layout(num_ranks: int, layout: _Layout) -> None:
    tp, pp, vpp, cp, ep, etp = layout
    problems = [
        f"{name}={size} is not a positive number"
        for name, size in zip(layout._fields, layout, strict=True)
        if size is not None and size < 1
    ]
    if not problems:
        products = {f"tp={tp} * pp={pp} * cp={cp}": tp * pp * cp, f"etp={etp} * ep={ep} * pp={pp}": etp * ep * pp}
        problems += [
            f"{text} = {size} does not divide {num_ranks}" for text, size in products.items() if num_ranks % size
        ]
        if vpp is not None and pp == 1:
            problems.append(f"vpp={vpp} needs pp > 1")
    if problems:
        raise ParallelLayoutError(
            f"parallel layout on {num_ranks} rank(s): {'; '.join(problems)}. "
            "Change the sizes, or start another number of ranks (torchrun --nproc-per-node N)."
        )


def _init_process_group(timeout_minutes: int | None) -> None:
    device = capabilities.device()
    has_cuda = device.type == "cuda"
    if has_cuda:
        torch.cuda.set_device(device)
    is_alone = not launched_by_torchrun()
    dist.init_process_group(
        capabilities.distributed_backend(),
        timeout=None if timeout_minutes is None else timedelta(minutes=timeout_minutes),
        store=dist.HashStore() if is_alone else None,
        rank=0 if is_alone else -1,
        world_size=1 if is_alone else -1,
        device_id=device if has_cuda else None,
    )


def _destroy_model_parallel() -> None:
    """Destroys megatron-core's groups. Its own `destroy_model_parallel` drops most, but they stay connected."""
    from megatron.core import parallel_state

    global _arguments, _seed
    _arguments, _seed = {}, None
    groups: list[dist.ProcessGroup | None] = parallel_state._global_process_group_list or []
    for group in groups:
        if group is not None:  # None stands for the default group
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def _seed_generators(seed: int) -> None:
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
