"""From codes to numbers, in blocks that stay in a core's cache: by their bits, or looked up in tables of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megatron.bridge.models.hf_pretrained.quantization.tensor import Box

    # Writes the numbers of a range of rows and a range of columns into a contiguous tensor.
    Codes = Callable[[tuple[int, int], tuple[int, int], torch.Tensor], None]

# Elements that are computed at once: they stay in a core's cache from one step to the next.
CHUNK = 2**18
TILE = 512

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
# E2M1, the 4-bit float of OCP's Microscaling Formats 1.0, section 5.3.3.
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Scales:
    """What the codes of a matrix `[R, C]` are multiplied by, in float32's arithmetic.

    Attributes:
        grid: `[ceil(R / block[0]), ceil(C / block[1])]`, floats or (uint8) exponents of two, biased by 127.
        block: rows and columns that one number of the grid serves.
        zeros: whole numbers of the grid's shape to be subtracted from the codes first.
        groups: `[C]`, the grid's column for each of the matrix's, where those of a group are not side by side.
        overall: one number that multiplies the grid first, or with `divides` divides it.
        last: a number that multiplies the result, which is rounded before.
    """

    grid: torch.Tensor
    block: tuple[int, int]
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    overall: torch.Tensor | None = None
    divides: bool = False
    last: float | None = None

    def apply(self, rows: tuple[int, int], columns: tuple[int, int], numbers: torch.Tensor) -> None:
        """Scales the numbers of a range of rows and of columns: inside one block of columns, or of whole ones."""
        first, last = rows[0] // self.block[0], (rows[1] - 1) // self.block[0]
        some = slice(first, last + 1) if first == last or self.block[0] == 1 else torch.arange(*rows) // self.block[0]
        grouped = numbers
        tail: Any = (...,)
        if self.groups is not None:
            place: Any = self.groups[columns[0] : columns[1]]
        elif columns[0] // self.block[1] == (columns[1] - 1) // self.block[1]:
            place = slice(columns[0] // self.block[1], columns[0] // self.block[1] + 1)
        else:
            place = slice(columns[0] // self.block[1], columns[1] // self.block[1])
            grouped, tail = numbers.unflatten(1, (-1, self.block[1])), (..., None)
        if self.zeros is not None:
            torch.sub(grouped, _at(self.zeros, some, place)[tail], out=grouped)
        scale = _at(self.grid, some, place)
        if self.overall is not None:
            scale = scale / self.overall if self.divides else scale * self.overall
        torch.mul(grouped, scale[tail], out=grouped)
        if self.last is not None:
            numbers *= self.last


def dequantize_matrix(codes: Codes, scales: Scales, box: Box, out: torch.Tensor) -> None:
    """Writes a box of a matrix of scaled codes, in blocks of bounded size; float32's arithmetic, rounded once.

    Args:
        codes: gives the numbers before they are scaled.
        scales: of the whole matrix.
        box: rows and columns.
        out: of the shape of the box, of a floating-point dtype and any strides.
    """
    (top, bottom), (left, right) = box
    # What is written transposed is written in tiles, of which a column is a few lines of a cache.
    width = TILE if out.stride(0) < out.stride(1) else right - left
    for columns in _pieces(left, right, scales.block[1] if scales.groups is None else 1, width):
        target = out[:, columns[0] - left : columns[1] - left]
        for rows in row_chunks(top, bottom, columns[1] - columns[0], scales.block[0]):
            wanted = target[rows[0] - top : rows[1] - top]
            is_direct = wanted.dtype == torch.float32 and wanted.is_contiguous()
            numbers = wanted if is_direct else torch.empty(wanted.shape, dtype=torch.float32)
            codes(rows, columns, numbers)
            scales.apply(rows, columns, numbers)
            if not is_direct:
                wanted.copy_(numbers)


def byte_codes(matrix: torch.Tensor) -> Codes:
    """The codes of a matrix of an 8-bit dtype."""
    return lambda rows, columns, out: decode_bytes(matrix[slice(*rows), slice(*columns)], out)


def packed_codes(matrix: torch.Tensor, values: tuple[float, ...], is_high_first: bool = False) -> Codes:
    """The codes of a matrix of bytes with several codes each; see `decode_packed`."""
    return lambda rows, columns, out: decode_packed(matrix[slice(*rows)], values, columns, out, is_high_first)


def as_numbers(scale: torch.Tensor) -> torch.Tensor:
    """Scales as float32; whole numbers are exponents of two (E8M0)."""
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


def decode_bytes(codes: torch.Tensor, out: torch.Tensor) -> None:
    """The numbers of an 8-bit dtype (float8 or integer), exactly.

    Float8 is made by its bits: they are those of a float16 (E5M2), or of one that is 256 times smaller (E4M3, whose
    exponents have one bit less), but for E4M3's NaN.

    Args:
        codes: `[R, C]`.
        out: `[R, C]`, float32, contiguous.
    """
    if codes.dtype in (torch.int8, torch.uint8):
        out.copy_(codes)
    elif codes.dtype == torch.float8_e5m2:
        bits = codes.view(torch.int8).to(torch.int16)
        out.copy_(bits.bitwise_left_shift_(8).view(torch.float16))
    elif codes.dtype == torch.float8_e4m3fn and not _has_nan(codes):
        bits = codes.view(torch.int8).to(torch.int16)  # the sign fills the upper byte
        out.copy_(bits.bitwise_left_shift_(7).bitwise_and_(_SIGN_AND_SIZE).view(torch.float16)).mul_(256)
    else:
        out.copy_(codes)


# The bits of a float16 that are those of an E4M3 float8: the sign, and three of its exponent's five are clear.
_SIGN_AND_SIZE = -0x4080


def _has_nan(codes: torch.Tensor) -> bool:
    return int(codes.view(torch.int8).bitwise_and(127).amax()) == 127


def decode_packed(
    packed: torch.Tensor,
    values: tuple[float, ...],
    columns: tuple[int, int],
    out: torch.Tensor,
    is_high_first: bool = False,
) -> None:
    """The numbers of a range of columns of codes of less than 8 bits, several in a byte.

    Args:
        packed: `[R, B]`, uint8.
        values: the numbers that codes stand for: 4 of them for codes of 2 bits, 16 for codes of 4, 256 for bytes.
        columns: start and stop among the codes of a row.
        out: `[R, stop - start]`, contiguous, of a dtype that holds these numbers.
        is_high_first: whether the first code of a byte is in its higher bits.
    """
    per_byte = {4: 4, 16: 2, 256: 1}[len(values)]
    start, stop = columns[0] // per_byte, -(-columns[1] // per_byte)
    whole = out
    if (stop - start) * per_byte != columns[1] - columns[0]:
        whole = torch.empty(len(out), (stop - start) * per_byte, dtype=out.dtype)
    table = _packed_table(values, per_byte, is_high_first, out.dtype)
    np.take(table, packed[:, start:stop].numpy(), out=_words(whole, table.dtype.itemsize), mode="clip")
    if whole is not out:
        out.copy_(whole[:, columns[0] - start * per_byte :][:, : out.shape[1]])


def row_chunks(top: int, bottom: int, num_columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows of about `CHUNK` elements, none across a multiple of `multiple` rows if it can be."""
    step = max(CHUNK // max(num_columns, 1), 1)
    if multiple > 1 and (step < multiple or multiple * num_columns >= CHUNK // 8):
        while top < bottom:
            stop = min(top + step, bottom, (top // multiple + 1) * multiple)
            yield top, stop
            top = stop
        return
    for start in range(top, bottom, step):
        yield start, min(start + step, bottom)


def _at(grid: torch.Tensor, rows: Any, columns: Any) -> torch.Tensor:
    if isinstance(columns, torch.Tensor):
        return as_numbers(grid[rows]).contiguous().index_select(1, columns)  # faster than an index of two axes
    return as_numbers(grid[rows][:, columns])


def _pieces(left: int, right: int, size: int, width: int) -> Iterator[tuple[int, int]]:
    """A range of columns cut into ones of whole blocks, and what is before and after, inside a block each.

    Args:
        size: columns of a block.
        width: of a piece about, if blocks are not wider.
    """
    whole, step = right // size * size, max(width // size, 1) * size
    while left < right:
        is_cut = left % size or left >= whole
        stop = min((left // size + 1) * size, right) if is_cut else min(left + step, whole)
        yield left, stop
        left = stop


@cache
def _packed_table(values: tuple[float, ...], per_byte: int, is_high_first: bool, dtype: torch.dtype) -> Any:
    numbers, byte, bits = torch.tensor(values, dtype=dtype), torch.arange(256), 8 // per_byte
    shifts = list(range(0, 8, bits))
    parts = [numbers[byte >> shift & (1 << bits) - 1] for shift in (reversed(shifts) if is_high_first else shifts)]
    return _as_words(torch.stack(parts, dim=1))


def _as_words(table: torch.Tensor) -> Any:
    """A table `[N, K]` whose K numbers in a row are one word."""
    raw = table.contiguous().view(torch.uint8).numpy()
    return raw.view(_WORDS[raw.shape[1]]).ravel()


def _words(out: torch.Tensor, itemsize: int) -> Any:
    return out.view(torch.uint8).numpy().view(_WORDS[itemsize])
