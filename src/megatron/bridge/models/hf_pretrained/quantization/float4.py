"""4-bit floats (E2M1), two in a byte, with a scale for each group of 16 or 32: NVFP4 and MXFP4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.hf_pretrained.quantization.tensor import Problem, QuantizedTensor, Stored

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.quantization.tensor import Box

_SCALE_CODES = {"F8_E4M3": 16, "U8": 32, "F8_E8M0": 32}


@dataclass(frozen=True)
class Float4Tensor(QuantizedTensor):
    """Numbers of 4 bits, each group of the last stored axis with a scale; NVFP4 has one for the whole tensor besides.

    The forms:

    - MXFP4 of gpt-oss: `*_blocks` `[E, N, K / 32, 16]` and `*_scales` `[E, N, K / 32]`, exponents; the tensor that is
      meant is `[E, K, N]` (transformers 5.23, `integrations/mxfp4.py`);
    - compressed-tensors 0.20, "nvfp4-pack-quantized" and "mxfp4-pack-quantized": `weight_packed` `[N, K / 2]`,
      `weight_scale`, and `weight_global_scale`, which divides;
    - ModelOpt NVFP4: `weight` `[N, K / 2]`, `weight_scale`, and `weight_scale_2`, which multiplies.

    Attributes:
        group: numbers that share a scale.
        is_transposed: whether the last two axes of what is stored are exchanged.
        divides: whether the global scale is divided by.
    """

    group: int = 32
    is_transposed: bool = False
    divides: bool = False

    ENDINGS = ("_blocks", "_scales", "_packed", "_global_scale", "_scale_2", "_scale")

    @property
    def format(self) -> str:
        kind = "NVFP4" if self.group == 16 else "MXFP4"
        return f"{kind}, a scale per group of {self.group}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: Mapping[str, Any]) -> Iterator[QuantizedTensor | Problem]:
        for name, tensor in stored.items():
            if tensor.code != "U8":
                continue
            parts, meant, shape = {"weight": name}, name, tensor.shape
            if name.endswith("_blocks") and len(shape) > 2:
                meant = name.removesuffix("_blocks")
                scale, other = f"{meant}_scales", None
                shape = (*shape[:-2], 2 * shape[-2] * shape[-1])
            elif name.endswith(".weight_packed"):
                meant = name.removesuffix("_packed")
                scale, other = f"{meant}_scale", f"{meant}_global_scale"
                shape = (*shape[:-1], 2 * shape[-1])
            elif f"{name}_scale_2" in stored:
                scale, other = f"{name}_scale", f"{name}_scale_2"
                shape = (*shape[:-1], 2 * shape[-1])
            else:
                continue
            if scale not in stored:
                yield Problem((name,), f"{name}: 4-bit numbers without their scale: expected {scale} beside it")
                continue
            group = _SCALE_CODES.get(stored[scale].code)
            grid = (*shape[:-1], shape[-1] // group) if group else ()
            if group is None or stored[scale].shape != grid or shape[-1] % group:
                yield Problem(
                    (name, scale),
                    f"{scale}: expected a scale of {' or '.join(_SCALE_CODES)} for each group of 16 or 32 numbers of "
                    f"{name} {list(tensor.shape)}, found {stored[scale].code} {list(stored[scale].shape)}",
                )
                continue
            parts["scale"] = scale
            if other is not None and other in stored:
                parts["global_scale"] = other
            elif group == 16:
                yield Problem(
                    (name, scale), f"{name}: NVFP4 without the scale of the whole tensor: expected {other} beside it"
                )
                continue
            is_transposed = name.endswith("_blocks")
            if is_transposed:
                shape = (*shape[:-2], shape[-1], shape[-2])
            yield cls(meant, shape, parts, group, is_transposed, name.endswith(".weight_packed"))

    def dequantize(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        """See `QuantizedTensor`; the arithmetic is float32's, rounded once."""
        packed, scales = parts["weight"], parts["scale"]
        packed = packed.flatten(-2) if packed.dim() > scales.dim() else packed
        factor = parts["global_scale"].float().reshape(()) if "global_scale" in parts else None
        leading, rows, columns = box[:-2], *(reversed(box[-2:]) if self.is_transposed else box[-2:])
        for place in product(*(range(start, stop) for start, stop in leading)):
            target = out[tuple(index - start for index, (start, _) in zip(place, leading, strict=True))]
            self._matrix(
                packed[place], scales[place], factor, rows, columns, target.mT if self.is_transposed else target
            )

    def _matrix(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,
        factor: torch.Tensor | None,
        rows: tuple[int, int],
        columns: tuple[int, int],
        out: torch.Tensor,
    ) -> None:
        import torch

        from megatron.bridge.models.hf_pretrained.quantization import decode

        exact = out.dtype if out.dtype in (torch.float32, torch.bfloat16) else torch.float32
        # Whole groups, of which the box may want a part.
        left, right = columns[0] // self.group, -(-columns[1] // self.group)
        wanted = slice(columns[0] - left * self.group, columns[1] - left * self.group)
        for start, stop in decode.row_chunks(rows[1] - rows[0], (right - left) * self.group):
            numbers = torch.empty(stop - start, (right - left) * self.group, dtype=exact)
            some = slice(rows[0] + start, rows[0] + stop)
            half = self.group // 2
            decode.decode_nibbles(packed[some, left * half : right * half], decode.FLOAT4, numbers)
            scale = _numbers(scales[some, left:right])
            if factor is not None:
                scale = scale / factor if self.divides else scale * factor
            grouped = numbers.unflatten(1, (-1, self.group))
            torch.mul(grouped, scale[..., None], out=grouped)
            out[start:stop] = numbers[:, wanted]


def _numbers(scale: torch.Tensor) -> torch.Tensor:
    import torch

    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
