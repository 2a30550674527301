"""From codes to numbers, in blocks that stay in a core's cache: by their bits, or looked up in tables of bytes."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import EllipsisType

    from numpy.typing import NDArray

    from megatron.bridge.transport.boxes import Box

    # Writes the numbers of a range of rows and a range of columns into a contiguous tensor.
    Codes = Callable[[tuple[int, int], tuple[int, int], torch.Tensor], None]

# How many elements are computed at once: so few that they stay in a core's cache from one step to the next.
CHUNK = 2**18
TILE = 512

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
# E2M1, the 4-bit float of OCP's Microscaling Formats 1.0, section 5.3.3.
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Scales:
    """What the codes of a matrix `[R, C]` are multiplied by, in float32 arithmetic.

    Attributes:
        grid: `[ceil(R / block[0]), ceil(C / block[1])]`, floats or (uint8) exponents of two, biased by 127.
        block: the rows and columns that one number of the grid applies to.
        zeros: whole numbers, in the grid's shape, that are first subtracted from the codes.
        groups: `[C]`, the grid's column for each column of the matrix, if those of a group are not side by side.
        overall: a number that first multiplies the grid or, with `divides`, divides it.
        last: a number that multiplies the result after it is rounded.
    """

    grid: torch.Tensor
    block: tuple[int, int]
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    overall: torch.Tensor | None = None
    divides: bool = False
    last: float | None = None

    def apply(self, rows: tuple[int, int], columns: tuple[int, int], numbers: torch.Tensor) -> None:
        """Scales the numbers in ranges of rows and of columns; the columns are part of one block, or whole blocks."""
        first, last = rows[0] // self.block[0], (rows[1] - 1) // self.block[0]
        is_plain = first == last or self.block[0] == 1
        grid_rows = slice(first, last + 1) if is_plain else torch.arange(*rows) // self.block[0]
        grouped = numbers
        tail: tuple[EllipsisType | None, ...] = (...,)
        grid_columns: slice | torch.Tensor
        if self.groups is not None:
            grid_columns = self.groups[columns[0] : columns[1]]
        elif columns[0] // self.block[1] == (columns[1] - 1) // self.block[1]:
            grid_columns = slice(columns[0] // self.block[1], columns[0] // self.block[1] + 1)
        else:
            grid_columns = slice(columns[0] // self.block[1], columns[1] // self.block[1])
            grouped, tail = numbers.unflatten(1, (-1, self.block[1])), (..., None)
        if self.zeros is not None:
            torch.sub(grouped, _at(self.zeros, grid_rows, grid_columns)[tail], out=grouped)
        scale = _at(self.grid, grid_rows, grid_columns)
        if self.overall is not None:
            scale = scale / self.overall if self.divides else scale * self.overall
        torch.mul(grouped, scale[tail], out=grouped)
        if self.last is not None:
            numbers *= self.last


def dequantize_matrix(codes: "Codes", scales: Scales, box: "Box", out: torch.Tensor) -> None:
    """Writes a box of a matrix of scaled codes, in blocks of bounded size; in float32 arithmetic, rounded once.

    Args:
        codes: gives the numbers before they are scaled.
        scales: the scales of the whole matrix.
        box: ranges of rows and of columns.
        out: has the shape of the box, a floating-point dtype and any strides.
    """
    (top, bottom), (left, right) = box
    # Transposed output is written in tiles, of which a column takes few lines of a cache.
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


def byte_codes(matrix: torch.Tensor) -> "Codes":
    """The codes of a matrix of an 8-bit dtype."""
    return lambda rows, columns, out: decode_bytes(matrix[slice(*rows), slice(*columns)], out)


def packed_codes(matrix: torch.Tensor, values: tuple[float, ...], is_high_first: bool = False) -> "Codes":
    """The codes of a matrix of bytes that hold several codes each; see `decode_packed`."""
    return lambda rows, columns, out: decode_packed(matrix[slice(*rows)], values, columns, out, is_high_first)


def as_numbers(scale: torch.Tensor) -> torch.Tensor:
    """Scales as float32. Whole numbers are exponents of two (E8M0): 128 is 2.0."""
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


def decode_bytes(codes: torch.Tensor, out: torch.Tensor) -> None:
    """The numbers of an 8-bit dtype (float8 or integer), exactly.

    Float8 is converted by its bits. They are those of a float16 (E5M2), or of one that is 256 times smaller (E4M3,
    whose exponents have one bit less), except for E4M3's NaN.

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


# The bits of a float16 that an E4M3 float8 fills: not the exponent's highest, into which a copy of the sign is shifted.
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
    """The numbers in a range of columns of codes that have less than 8 bits, so that a byte holds several.

    Args:
        packed: `[R, B]`, uint8.
        values: the numbers that the codes stand for: 4 for codes of 2 bits, 16 for codes of 4 bits, 256 for bytes.
        columns: start and stop among the codes of a row.
        out: `[R, stop - start]`, contiguous, of a dtype that can hold these numbers.
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


def row_chunks(top: int, bottom: int, num_columns: int, multiple: int = 1) -> "Iterator[tuple[int, int]]":
    """Consecutive ranges of rows of about `CHUNK` elements; if possible, none crosses a multiple of `multiple` rows."""
    step = max(CHUNK // max(num_columns, 1), 1)
    if multiple > 1 and (step < multiple or multiple * num_columns >= CHUNK // 8):
        while top < bottom:
            stop = min(top + step, bottom, (top // multiple + 1) * multiple)
            yield top, stop
            top = stop
        return
    for start in range(top, bottom, step):
        yield start, min(start + step, bottom)


def _at(grid: torch.Tensor, rows: slice | torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
    if isinstance(columns, torch.Tensor):
        return as_numbers(grid[rows]).contiguous().index_select(1, columns)  # faster than an index of two axes
    return as_numbers(grid[rows][:, columns])


def _pieces(left: int, right: int, size: int, width: int) -> "Iterator[tuple[int, int]]":
    """Cuts a range of columns into pieces of whole blocks; the first and the last piece may be part of a block.

    Args:
        size: the number of columns of a block.
        width: about that of a piece, unless blocks are wider.
    """
    whole, step = right // size * size, max(width // size, 1) * size
    while left < right:
        is_cut = left % size or left >= whole
        stop = min((left // size + 1) * size, right) if is_cut else min(left + step, whole)
        yield left, stop
        left = stop


@cache
def _packed_table(
    values: tuple[float, ...], per_byte: int, is_high_first: bool, dtype: torch.dtype
) -> "NDArray[np.generic]":
    numbers, byte, bits = torch.tensor(values, dtype=dtype), torch.arange(256), 8 // per_byte
    shifts = list(range(0, 8, bits))
    parts = [numbers[byte >> shift & (1 << bits) - 1] for shift in (reversed(shifts) if is_high_first else shifts)]
    return _as_words(torch.stack(parts, dim=1))


def _as_words(table: torch.Tensor) -> "NDArray[np.generic]":
    """A table `[N, K]` in which the K numbers of a row are one word."""
    raw = table.contiguous().view(torch.uint8).numpy()
    return raw.view(_WORDS[raw.shape[1]]).ravel()


def _words(out: torch.Tensor, itemsize: int) -> "NDArray[np.generic]":
    return out.view(torch.uint8).numpy().view(_WORDS[itemsize])
