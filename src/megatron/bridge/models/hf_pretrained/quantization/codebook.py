"""bitsandbytes' 4-bit numbers: positions in a table of 16 numbers (NF4 or FP4), with a scale for each block."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.tensor import Problem, QuantizedTensor, Stored, places
from megatron.bridge.transport.boxes import Box

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.config import JsonObject

_STATE = re.compile(r"(?P<name>.+)\.quant_state\.bitsandbytes__(?P<kind>nf4|fp4)")
_ITEM_SIZES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}
_NESTED = ("nested_absmax", "nested_quant_map")


@dataclass(frozen=True)
class CodebookTensor(QuantizedTensor):
    """`quant_map[code] * absmax`, for a tensor whose numbers, taken as one row, are cut into blocks.

    The form (bitsandbytes 0.50, `QuantState.as_dict(packed=True)`), in tensors whose names begin with the weight's:

    - the weight itself: bytes `[n / 2, 1]`, with the first of two codes in the higher bits; perhaps of another dtype;
    - `.quant_map` `[16]`, the table, and `.absmax`, the largest value of each block;
    - with nested quantisation, `.absmax` is bytes, positions in `.nested_quant_map` `[256]`, with a scale for each
      block of them, `.nested_absmax`, and an offset;
    - `.quant_state.bitsandbytes__nf4` (or `fp4`), JSON: the shape of the tensor that is meant, the sizes of blocks, and
      the offset.

    Attributes:
        kind: "nf4" or "fp4".
        num_scales: how many numbers `.absmax` and `.nested_absmax` have.
        block: how many numbers share a scale; 0 before the JSON is read.
        nested_block, offset: the block size and the offset of nested quantisation.
    """

    kind: str = "nf4"
    num_scales: tuple[int, int] = (0, 0)
    block: int = 0
    nested_block: int = 0
    offset: float = 0.0

    @property
    def format(self) -> str:
        return f"bitsandbytes {self.kind.upper()}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: "JsonObject") -> Iterator[QuantizedTensor | Problem]:
        for state in stored:
            match = _STATE.fullmatch(state) if state.endswith(("nf4", "fp4")) else None
            if match is None:
                continue
            name = match["name"]
            roles = ("absmax", "quant_map", *(_NESTED if any(f"{name}.{role}" in stored for role in _NESTED) else ()))
            names = {"weight": name, "state": state} | {role: f"{name}.{role}" for role in roles}
            absent = [part for part in names.values() if part not in stored]
            present = {role: part for role, part in names.items() if part in stored}
            problem = f"{state}: {' and '.join(absent)} beside it are absent" if absent else _problem(names, stored)
            if problem:
                yield Problem(tuple(present.values()), problem)
                continue
            sizes = {role: prod(stored[part].shape) for role, part in names.items()}
            num_bytes = sizes["weight"] * _ITEM_SIZES[stored[name].code]
            counts = (sizes["absmax"], sizes.get("nested_absmax", 0))
            yield cls(name, (2 * num_bytes,), names, match["kind"], counts)

    @property
    def unread(self) -> tuple[str, ...]:
        return () if self.block else ("state",)

    def read(self, contents: Mapping[str, bytes]) -> "CodebookTensor":
        name = self.parts["state"]
        try:
            state = json.loads(contents["state"])
            shape, block = tuple(map(int, state["shape"])), int(state["blocksize"])
            is_nested = "nested_absmax" in self.parts
            nested_block = int(state["nested_blocksize"]) if is_nested else 0
            offset = float(state["nested_offset"]) if is_nested else 0.0
            kind = state["quant_type"]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise QuantizationError(
                f"{name}: expected bitsandbytes' JSON, with shape, blocksize, quant_type and what is nested: {error!r}"
            ) from error
        if kind != self.kind or block < 1 or (is_nested and nested_block < 1) or min(shape, default=0) < 1:
            raise QuantizationError(
                f"{name}: says quant_type {kind!r}, shape {list(shape)} and blocks of {block} (nested: {nested_block})"
            )
        num_scales = -(-prod(shape) // block)
        expected = (num_scales, -(-num_scales // nested_block) if is_nested else 0)
        if -(-prod(shape) // 2) * 2 != self.shape[0] or expected != self.num_scales:
            raise QuantizationError(
                f"{name}: shape {list(shape)} in blocks of {block} (nested: {nested_block}) takes "
                f"{-(-prod(shape) // 2)} bytes and {expected} scales, but {self.name} has {self.shape[0] // 2} bytes "
                f"and {self.num_scales} scales"
            )
        return replace(self, shape=shape, block=block, nested_block=nested_block, offset=offset)

    def dequantize(self, parts: "Mapping[str, torch.Tensor]", box: Box, out: "torch.Tensor") -> None:
        """See `QuantizedTensor`; in float32 arithmetic, rounded once."""
        import torch

        from megatron.bridge.models.hf_pretrained.quantization import decode

        raw = parts["weight"].contiguous().view(torch.uint8).reshape(1, -1)
        grid, table = self._absmax(parts).reshape(1, -1), tuple(parts["quant_map"].tolist())
        num_columns = self.shape[-1] if self.shape else 1
        is_by_row = num_columns % self.block == 0 and self.block % 2 == 0
        if is_by_row:
            raw, grid = raw.reshape(-1, num_columns // 2), grid.reshape(-1, num_columns // self.block)
        codes, scales = decode.packed_codes(raw, table, is_high_first=True), decode.Scales(grid, (1, self.block))
        box, out = ((0, 1), *box)[-max(len(box), 2) :], out if len(box) > 1 else out.reshape(1, -1)
        left, right = box[-1]
        for place, target in places(box, out):
            skipped = 0
            for index, size in zip(place, self.shape, strict=False):
                skipped = skipped * size + index
            top, bottom = (skipped * self.shape[-2] + row for row in box[-2]) if len(self.shape) > 1 else box[-2]
            if is_by_row:
                decode.dequantize_matrix(codes, scales, ((top, bottom), box[-1]), target)
                continue
            for row in range(top, bottom):  # blocks continue from one row to the next
                columns = (row * num_columns + left, row * num_columns + right)
                part = target[row - top : row - top + 1]
                decode.dequantize_matrix(codes, scales, ((0, 1), columns), part)

    def _absmax(self, parts: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        absmax = parts["absmax"].reshape(-1)
        if not self.nested_block:
            return absmax
        scale = parts["nested_absmax"].reshape(-1).repeat_interleave(self.nested_block)[: len(absmax)]
        return parts["nested_quant_map"][absmax.int()] * scale + self.offset


def _problem(names: Mapping[str, str], stored: Mapping[str, Stored]) -> str | None:
    """What is wrong with the dtypes, and with the sizes that all tensors have in common."""
    is_nested = "nested_absmax" in names
    codes = {"state": "U8", "quant_map": "F32", "absmax": "U8" if is_nested else "F32"}
    codes |= {"nested_absmax": "F32", "nested_quant_map": "F32"} if is_nested else {}
    for role, code in codes.items():
        part, size = stored[names[role]], {"quant_map": 16, "nested_quant_map": 256}.get(role)
        if part.code != code or (size and part.shape != (size,)):
            return (
                f"{names[role]}: expected {code}{[size] if size else ''} of bitsandbytes' 4-bit numbers, found "
                f"{part.code} {list(part.shape)}"
            )
    weight = stored[names["weight"]]
    if weight.code not in _ITEM_SIZES:
        return (
            f"{names['weight']}: expected bitsandbytes' 4-bit numbers as {', '.join(_ITEM_SIZES)}, found {weight.code}"
        )
    return None
