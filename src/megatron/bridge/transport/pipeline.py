"""Messages between pipeline stages: hidden states go to the next stage, results from the last stage to all."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def is_first(group: dist.ProcessGroup) -> bool:
    """Whether this rank is the first stage of the pipeline whose ranks are `group`."""
    return group.rank() == 0


def is_last(group: dist.ProcessGroup) -> bool:
    """Whether this rank is the last stage."""
    return group.rank() == group.size() - 1


def send_to_next(tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Sends a tensor to the next stage, which must call `receive_from_previous` with its shape and dtype."""
    dist.send(tensor.contiguous(), group=group, group_dst=group.rank() + 1)


def receive_from_previous(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, group: dist.ProcessGroup
) -> torch.Tensor:
    """Waits for the tensor that the previous stage sends."""
    tensor = torch.empty(*shape, dtype=dtype, device=device)
    dist.recv(tensor, group=group, group_src=group.rank() - 1)
    return tensor


def broadcast_from_last(
    values: list[int] | None, count: int, device: torch.device, group: dist.ProcessGroup
) -> list[int]:
    """The last stage's `count` integers, on every stage; what other stages pass is ignored."""
    if group.size() == 1:
        assert values is not None
        return values
    tensor = torch.tensor(values if is_last(group) else [0] * count, dtype=torch.int64, device=device)
    dist.broadcast(tensor, group=group, group_src=group.size() - 1)
    tokens: list[int] = tensor.tolist()
    return tokens
