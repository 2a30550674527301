"""The dtype that a caller asks for, in any of the ways that transformers accepts."""

from typing import TYPE_CHECKING

from megatron.bridge.errors import BridgeError

if TYPE_CHECKING:
    import torch

type DtypeLike = "torch.dtype | str | None"


def requested_dtype(dtype: DtypeLike = None, torch_dtype: DtypeLike = None) -> "torch.dtype | None":
    """The dtype that is asked for by either name of the argument; `None` for that of the checkpoint.

    `requested_dtype(torch_dtype="bfloat16")` is `torch.bfloat16`.

    Args:
        dtype: a dtype, its name, or "auto", which is the same as `None`.
        torch_dtype: the same under the older name.

    Raises:
        BridgeError: the two are given and differ, or one is no floating-point dtype.
    """
    given = {name: value for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype)) if value is not None}
    meant = {_parsed(name, value) for name, value in given.items()}
    if len(meant) > 1:
        raise BridgeError(
            f"dtype={dtype} and torch_dtype={torch_dtype}: two names of one argument, with different values. Give one."
        )
    return meant.pop() if meant else None


def _parsed(name: str, value: "torch.dtype | str") -> "torch.dtype | None":
    import torch

    if value == "auto":
        return None
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise BridgeError(f'{name}={value!r:.100}: expected "auto", or a floating-point dtype such as torch.bfloat16.')
    return dtype
