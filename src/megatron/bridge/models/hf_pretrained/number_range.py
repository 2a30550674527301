"""Numbers that a dtype cannot hold are an error: they never become Inf or NaN in silence."""

from typing import TYPE_CHECKING

from megatron.bridge.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def narrows(source: "torch.dtype", target: "torch.dtype") -> bool:
    """Whether finite numbers of a floating-point dtype can be outside of another's range."""
    import torch

    if source == target or not (source.is_floating_point and target.is_floating_point):
        return False
    return torch.finfo(target).max < torch.finfo(source).max


def is_finite(tensor: "Tensor") -> bool:
    """Whether a tensor has neither Inf nor NaN, both of which show in its least and largest number."""
    if not tensor.numel():
        return True
    least, largest = (tensor if tensor.dtype.itemsize > 1 else tensor.float()).aminmax()
    return bool(least.isfinite() & largest.isfinite())


def check_range(result: "Tensor", source: "Tensor", name: str) -> None:
    """Checks what a conversion of dtype has made of a tensor, at a third of its cost, and only where it can go wrong.

    Args:
        result: the same numbers as `source` in another dtype.
        name: of the tensor, for the error.

    Raises:
        CheckpointError: finite numbers have become Inf or NaN.

    Example: `check_range(weight.half(), weight, "lm_head.weight")`
    """
    import torch

    if not narrows(source.dtype, result.dtype):
        return
    if is_finite(result):
        return
    lost = result.float().isfinite().logical_not_().logical_and_(source.isfinite())
    if count := int(lost.sum()):
        largest, limit = float(source[lost].abs().max()), torch.finfo(result.dtype).max
        raise CheckpointError(
            f"{name}: {count} of {source.numel()} numbers are outside of the range of {result.dtype} "
            f"(up to {limit:.6g}; found {largest:.6g}) and would become Inf or NaN; choose a wider dtype, such as "
            "torch.bfloat16"
        )
