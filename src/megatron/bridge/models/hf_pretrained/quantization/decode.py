"""From codes to numbers at the speed of memory: tables are looked up for two bytes at a time."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Elements that are computed at once: they stay in a core's cache from one step to the next.
CHUNK = 2**18

_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
# E2M1, the 4-bit float of OCP's Microscaling Formats 1.0, section 5.3.3.
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode_bytes(codes: torch.Tensor, out: torch.Tensor) -> None:
    """The numbers of an 8-bit dtype (float8 or integer), exactly, in a dtype that holds them.

    Args:
        codes: `[R, C]`.
        out: `[R, C]`, contiguous, float32 or bfloat16.
    """
    raw = np.ascontiguousarray(codes.view(torch.uint8).numpy())
    table = _byte_table(codes.dtype, out.dtype)
    if raw.shape[-1] % 2 == 0 and raw.ctypes.data % 2 == 0:
        raw, table = raw.view(np.uint16), _pair_table(codes.dtype, out.dtype)
    np.take(table, raw, out=_words(out, table.dtype.itemsize), mode="clip")


def decode_nibbles(codes: torch.Tensor, values: tuple[float, ...], out: torch.Tensor) -> None:
    """The numbers of 4-bit codes, two in a byte, the lower bits first.

    Args:
        codes: `[R, C]`, uint8.
        values: the 16 numbers that codes stand for.
        out: `[R, 2 * C]`, contiguous, of a dtype that holds these numbers.
    """
    table = _nibble_table(values, out.dtype)
    np.take(table, codes.numpy(), out=_words(out, table.dtype.itemsize), mode="clip")


def row_chunks(num_rows: int, num_columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows of about `CHUNK` elements, none across a multiple of `multiple` rows."""
    step = max(CHUNK // max(num_columns, 1), 1)
    step = step if multiple == 1 or step < multiple else step // multiple * multiple
    start = 0
    while start < num_rows:
        stop = min(start + step, num_rows)
        if step < multiple:
            stop = min(stop, (start // multiple + 1) * multiple)
        yield start, stop
        start = stop


@cache
def _byte_table(code: torch.dtype, dtype: torch.dtype) -> Any:
    return _as_words(torch.arange(256, dtype=torch.uint8).view(code).to(dtype)[:, None])


@cache
def _pair_table(code: torch.dtype, dtype: torch.dtype) -> Any:
    pairs = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.uint8).copy()).view(code)
    return _as_words(pairs.to(dtype).view(65536, 2))


@cache
def _nibble_table(values: tuple[float, ...], dtype: torch.dtype) -> Any:
    numbers = torch.tensor(values, dtype=dtype)
    byte = torch.arange(256)
    return _as_words(torch.stack([numbers[byte & 15], numbers[byte >> 4]], dim=1))


def _as_words(table: torch.Tensor) -> Any:
    """A table `[N, K]` whose K numbers in a row are one word."""
    raw = table.contiguous().view(torch.uint8).numpy()
    return raw.view(_WORDS[raw.shape[1]]).ravel()


def _words(out: torch.Tensor, itemsize: int) -> Any:
    return out.view(torch.uint8).numpy().view(_WORDS[itemsize])
