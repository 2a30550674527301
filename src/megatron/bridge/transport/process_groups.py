"""Process groups: starting `torch.distributed` and megatron-core's parallel state, and small collectives on objects.

Sizes are numbers of ranks: `tp` tensor, `pp` pipeline, `vpp` virtual pipeline (model chunks per rank), `cp` context,
`ep` expert, `etp` expert tensor parallel.
"""

import os
import random
from datetime import timedelta
from typing import Any

import numpy
import torch
import torch.distributed as dist

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.runtime import capabilities
from megatron.bridge.transport.launcher import launch as launch

# What megatron-core's parallel state cannot be asked for: the other arguments it was made with, and the seed.
_arguments: dict[str, Any] = {}
_seed: int | None = None


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
    """Wait for all ranks; nothing before `initialize`."""
    if is_initialized():
        dist.barrier()


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """The picklable `obj` of rank `src`, on every rank (the argument is ignored elsewhere)."""
    if not is_initialized():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=src, device=_object_device())
    return box[0]


def all_gather_object(obj: Any) -> list[Any]:
    """Every rank's picklable `obj`, in rank order, on every rank."""
    if not is_initialized():
        return [obj]
    objects: list[Any] = [None] * world_size()
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
    """Start `torch.distributed` (unless it is started) and megatron-core's model-parallel state; seed the generators.

    Under torchrun the ranks come from its environment; without it, this process is the only rank and opens no port.
    Called again with the same arguments, it does nothing; with another seed, it seeds; with another layout, it makes
    the model-parallel groups anew, and models built on the old ones must not be used any more. State that the caller
    has made itself with `initialize_model_parallel` is kept if it is of this layout.

    Args:
        seed: pipeline stage `i` gets `seed + 100 * i`, as in Megatron-LM: stages start from different weights.
        **kwargs: passed to `megatron.core.parallel_state.initialize_model_parallel` (`order`,
            `distributed_timeout_minutes`, ...).

    Raises:
        ParallelLayoutError: the sizes do not divide the number of ranks.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    global _arguments, _seed
    layout = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None if vpp == 1 else vpp,
        "context_parallel_size": cp,
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": tp if etp is None else etp,
    }
    _check_layout(dist.get_world_size() if is_initialized() else _env_world_size(), layout)
    if not is_initialized():
        _init_process_group(kwargs.get("distributed_timeout_minutes"))
    if not (parallel_state.model_parallel_is_initialized() and _current_layout() == layout and _arguments == kwargs):
        _destroy_model_parallel()
        parallel_state.initialize_model_parallel(**layout, **kwargs)
        _arguments = kwargs
    elif get_cuda_rng_tracker().is_initialized() and _seed in (seed, None):
        return
    _seed_generators(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())
    _seed = seed


def destroy() -> None:
    """End the model-parallel state and `torch.distributed`, as if `initialize` had not been called."""
    if is_initialized():
        _destroy_model_parallel()
        dist.destroy_process_group()


def _env_world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched_by_torchrun() else 1


def _current_layout() -> dict[str, Any]:
    from megatron.core import parallel_state

    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
    }


def _check_layout(num_ranks: int, layout: dict[str, Any]) -> None:
    tp, pp, vpp, cp, ep, etp = layout.values()
    problems = [
        f"{name}={size} is not a positive number" for name, size in layout.items() if size is not None and size < 1
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
    arguments: dict[str, Any] = {"backend": capabilities.distributed_backend()}
    if timeout_minutes is not None:
        arguments["timeout"] = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        arguments["device_id"] = device
    if not launched_by_torchrun():
        arguments.update(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group(**arguments)


def _destroy_model_parallel() -> None:
    """Destroy megatron-core's groups: its `destroy_model_parallel` drops most of them while they stay connected."""
    from megatron.core import parallel_state

    global _arguments, _seed
    _arguments, _seed = {}, None
    for group in parallel_state._global_process_group_list or []:
        if group is not None:  # None stands for the default group
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def _seed_generators(seed: int) -> None:
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
