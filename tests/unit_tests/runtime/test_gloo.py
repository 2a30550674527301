"""The collectives that gloo lacks, and those that it is relied upon to have."""

import pytest
import torch
import torch.distributed as dist

from megatron.bridge.runtime import gloo
from megatron.bridge.transport import process_groups
from tests.ranks import RankFailure, run_ranks


def own(rows: int = 2) -> torch.Tensor:
    """[rows, 2], with values that tell the rank."""
    return torch.arange(2.0 * rows).view(rows, 2) + 10 * process_groups.rank()


def test_all_gather_of_unequal_shapes():
    def gather():
        whole = torch.full((3, 4), -1.0)
        columns = [whole[:1, :2], whole[1:, 2:]]  # slices with gaps
        dist.all_gather(columns, own(process_groups.rank() + 1))
        return whole.tolist()

    expected = [[0.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 10.0, 11.0], [-1.0, -1.0, 12.0, 13.0]]
    assert run_ranks(gather, 2) == [expected, expected]


def test_all_gather_in_a_group():
    def gather():
        group = dist.new_group([1, 2])
        if process_groups.rank() == 0:
            return None
        received = [torch.empty(2, 2), torch.empty(3, 2)]
        dist.all_gather(received, own(process_groups.rank() + 1), group=group)
        return torch.cat(received)[:, 0].tolist()

    assert run_ranks(gather, 3) == [None, [10, 12, 20, 22, 24], [10, 12, 20, 22, 24]]


def test_all_gather_of_equal_shapes_is_torchs():
    def gather():
        received = [torch.empty(2, 2) for _ in range(2)]
        work = dist.all_gather(received, own(), async_op=True)
        work.wait()
        return torch.cat(received)[:, 0].tolist()

    assert run_ranks(gather, 2) == [[0, 2, 10, 12]] * 2


def test_gloo_still_refuses_unequal_shapes():
    """When this fails, torch has learnt it, and `gloo.all_gather` can go."""
    with pytest.raises(RankFailure, match="invalid tensor size"):
        run_ranks(
            lambda: gloo._all_gather([torch.empty(1), torch.empty(2)], own().view(-1)[: process_groups.rank() + 1]), 2
        )


def test_what_gloo_has():
    def run():
        rank = process_groups.rank()
        results = []
        sizes = [[1, 2], [2, 1]]  # what each rank sends to each
        received = torch.empty(3)
        dist.all_to_all_single(received, torch.arange(3.0) + 10 * rank, [size[rank] for size in sizes], sizes[rank])
        results.append(received.tolist())
        part = torch.empty(rank + 1)
        dist.reduce_scatter(part, [torch.ones(1), torch.full((2,), 2.0)])
        results.append(part.tolist())
        half = torch.empty(1, 2, dtype=torch.bfloat16)
        dist.reduce_scatter_tensor(half, own().bfloat16(), op=dist.ReduceOp.AVG)
        results.append(half.tolist())
        gathered = torch.empty(4, 2)
        dist.all_gather_into_tensor(gathered, own())
        results.append(gathered[:, 0].tolist())
        return results

    gathered = [0, 2, 10, 12]
    assert run_ranks(run, 2) == [[[0, 10, 11], [2], [[5, 6]], gathered], [[1, 2, 12], [4, 4], [[7, 8]], gathered]]
