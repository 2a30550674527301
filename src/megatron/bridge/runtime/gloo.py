"""What megatron-core expects of NCCL and gloo lacks. Put in place by `megatron.bridge.runtime.enter()`.

Of the collectives that megatron-core 0.19 uses, torch 2.15's gloo has all (`all_to_all_single` and `reduce_scatter`
with uneven splits, `all_gather_into_tensor`, `ReduceOp.AVG`, coalescing) but one: `all_gather` into unequal shapes.
"""

import torch
import torch.distributed as dist

_all_gather = dist.all_gather


def all_gather(
    tensor_list: list[torch.Tensor],
    tensor: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> dist.Work | None:
    """`torch.distributed.all_gather`, but with tensors of unequal shapes in `tensor_list` if `async_op` is false.

    Rank i of the group sends a tensor of the shape of `tensor_list[i]`.
    """
    if async_op or all(received.shape == tensor_list[0].shape for received in tensor_list):
        return _all_gather(tensor_list, tensor, group, async_op)
    tensor_list[dist.get_rank(group)].copy_(tensor)
    for rank, received in enumerate(tensor_list):
        buffer = received.contiguous()  # a slice of a larger tensor may have gaps
        dist.broadcast(buffer, group=group, group_src=rank)
        if buffer is not received:
            received.copy_(buffer)
    return None
