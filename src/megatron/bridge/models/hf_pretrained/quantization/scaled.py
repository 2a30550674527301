"""8-bit numbers (FP8 or integers) that are multiplied by a scale: one for a tensor, a channel, a group or a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.tensor import Problem, QuantizedTensor, Stored, block_shape

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.quantization.tensor import Box

FLOAT8_CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NAMES = {"F8_E4M3": "FP8 (E4M3)", "F8_E5M2": "FP8 (E5M2)", "I8": "INT8"}
# Names of the scale, of "...weight" or of a parameter without that ending, in the order in which they are tried.
_SCALES = ("{}_scale_inv", "{}_scale")
_SCALE_CODES = ("F32", "F16", "BF16", "F8_E8M0", "U8")


@dataclass(frozen=True)
class ScaledTensor(QuantizedTensor):
    """`weight * scale`, or `(weight - zero_point) * scale`, with 8-bit weights.

    The forms: FP8 in blocks (`weight_scale_inv`, DeepSeek-V3), with a scale for a tensor (Ministral 3, ModelOpt) or a
    channel (compressed-tensors), INT8 (compressed-tensors), MXFP8 (scales that are exponents). transformers 5.23 calls
    them "fp8", "compressed-tensors" and "modelopt".

    Attributes:
        code: safetensors dtype of the weight.
        block: elements of each axis that one scale serves.
    """

    code: str = "F8_E4M3"
    block: tuple[int, ...] = ()

    ENDINGS = ("_scale_inv", "_scale", "_zero_point")

    @property
    def format(self) -> str:
        name = _NAMES.get(self.code, self.code)
        if self.block == self.shape:
            return f"{name}, a scale per tensor"
        if self.block[-2:] == (1, self.shape[-1]):
            return f"{name}, a scale per channel"
        return f"{name}, a scale per block of {' x '.join(map(str, self.block[-2:]))}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: Mapping[str, Any]) -> Iterator[QuantizedTensor | Problem]:
        for name, tensor in stored.items():
            if tensor.code not in (*FLOAT8_CODES, "I8") or name.endswith(cls.ENDINGS):
                continue
            scale_name = next((found for form in _SCALES if (found := form.format(name)) in stored), None)
            if scale_name is None:
                continue  # another kind's, or nobody's
            zero_name = f"{name}_zero_point"
            parts = {"weight": name, "scale": scale_name}
            if zero_name in stored:
                parts["zero_point"] = zero_name
            try:
                block = _block(name, tensor, scale_name, stored[scale_name], config)
            except QuantizationError as error:
                yield Problem(tuple(parts.values()), str(error))
                continue
            yield cls(name, tensor.shape, parts, tensor.code, block)

    def dequantize(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        """See `QuantizedTensor`; the arithmetic is float32's, rounded once."""
        weight, grid = parts["weight"], self._grid(parts["scale"])
        zeros = self._grid(parts["zero_point"]) if "zero_point" in parts else None
        leading, matrix = box[:-2], box[-2:]
        if len(box) < 2:  # a vector is a matrix of one row
            weight, grid, out = weight[None], grid[None], out[None]
            zeros = zeros if zeros is None else zeros[None]
            leading, matrix = (), ((0, 1), *box) if box else ((0, 1), (0, 1))
        block = (1, 1, *self.block)[-2:]
        for place in product(*(range(start, stop) for start, stop in leading)):
            blocks = tuple(index // size for index, size in zip(place, self.block, strict=False))
            target = out[tuple(index - start for index, (start, _) in zip(place, leading, strict=True))]
            zero = None if zeros is None else zeros[blocks]
            _dequantize_matrix(weight[place], grid[blocks], zero, block, matrix, target)

    def _grid(self, scale: torch.Tensor) -> torch.Tensor:
        """The scales (or zero points) as float32, with an axis for each of the tensor's."""
        import torch

        exponents = scale.dtype == torch.uint8
        scale = (scale.float() - 127).exp2() if exponents else scale.float()
        if scale.numel() == 1:
            return scale.reshape((1,) * len(self.shape))
        return scale.reshape(*scale.shape, *(1,) * (len(self.shape) - scale.dim()))


def _block(name: str, tensor: Stored, scale_name: str, scale: Stored, config: Mapping[str, Any]) -> tuple[int, ...]:
    if scale.code not in _SCALE_CODES:
        raise QuantizationError(
            f"{scale_name}: a scale must be {', '.join(_SCALE_CODES)}, found {scale.code}, of {name}"
        )
    return block_shape(name, tensor.shape, scale_name, scale.shape, config.get("weight_block_size"))


def _dequantize_matrix(
    weight: torch.Tensor,
    grid: torch.Tensor,
    zeros: torch.Tensor | None,
    block: tuple[int, int],
    box: Box,
    out: torch.Tensor,
) -> None:
    import torch

    from megatron.bridge.models.hf_pretrained.quantization import decode

    (top, bottom), (left, right) = box
    is_aligned = left % block[1] == 0 and (right - left) % block[1] == 0
    columns = slice(left // block[1], right // block[1]) if is_aligned else torch.arange(left, right) // block[1]
    exact = out.dtype if out.dtype in (torch.float32, torch.bfloat16) else torch.float32
    for start, stop in decode.row_chunks(bottom - top, right - left):
        numbers = torch.empty(stop - start, right - left, dtype=exact) if exact != out.dtype else out[start:stop]
        decode.decode_bytes(weight[top + start : top + stop, left:right], numbers)
        first, last = (top + start) // block[0], (top + stop - 1) // block[0]
        rows = slice(first, first + 1) if first == last else torch.arange(top + start, top + stop) // block[0]
        grouped = numbers.unflatten(1, (-1, block[1])) if is_aligned else numbers
        tail = (..., None) if is_aligned else (...,)
        if zeros is not None:
            torch.sub(grouped, zeros[rows][:, columns][tail], out=grouped)
        torch.mul(grouped, grid[rows][:, columns][tail], out=grouped)
        if numbers.dtype != out.dtype:
            out[start:stop] = numbers
