"""4-bit floats (E2M1), two in a byte, with a scale for each group of 16 or 32: NVFP4 and MXFP4."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from megatron.bridge.models.hf_pretrained.quantization.tensor import (
    Problem,
    QuantizedTensor,
    Stored,
    places,
    scale_names,
)
from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.config import JsonObject

_GROUPS = {"F8_E4M3": 16, "U8": 32, "F8_E8M0": 32}


@dataclass(frozen=True)
class Float4Tensor(QuantizedTensor):
    """4-bit numbers with a scale for each group along an axis; NVFP4 has another one for the whole matrix.

    The forms:

    - MXFP4 of gpt-oss: `*_blocks` `[E, N, K / 32, 16]` and `*_scales` `[E, N, K / 32]`, exponents; the tensor that is
      meant is `[E, K, N]` (transformers 5.23, `integrations/mxfp4.py`);
    - compressed-tensors 0.20, "nvfp4-pack-quantized" and "mxfp4-pack-quantized": `weight_packed` `[N, K / 2]`,
      `weight_scale`, and `weight_global_scale`, which divides;
    - ModelOpt NVFP4: `weight` `[N, K / 2]`, `weight_scale`, and `weight_scale_2`, which multiplies; or all experts
      together, `*_proj` `[E, N, K / 2]` with `*_proj_weight_scale` and `*_proj_weight_scale_2` (one number, or one for
      each expert), or packed along the other axis, `[E, K / 2, N]`;
    - MXFP4 in int8 or uint8: `weight` `[N, K / 2]`, and `weight_scale_inv` or `weight_scale`, exponents (transformers
      5.23, `Fp8Dequantize`).

    Attributes:
        group: how many numbers share a scale.
        axis: the stored tensor's axis along which numbers are packed and grouped: -1 or -2.
        is_transposed: whether the last two axes of the stored tensor are exchanged.
        divides: whether the global scale is a divisor.
    """

    group: int = 32
    axis: int = -1
    is_transposed: bool = False
    divides: bool = False

    @property
    def format(self) -> str:
        kind = "NVFP4" if self.group == 16 else "MXFP4"
        return f"{kind}, a scale per group of {self.group}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: "JsonObject") -> Iterator[QuantizedTensor | Problem]:
        for name, tensor in stored.items():
            names = _names(name, stored) if tensor.code in ("U8", "I8") and len(tensor.shape) > 1 else None
            if names is None:
                continue
            if names.scale not in stored:
                yield Problem((name,), f"{name}: 4-bit numbers without their scale: expected {names.scale} beside it")
                continue
            parts = {"weight": name, "scale": names.scale}
            scale, is_blocks = stored[names.scale], name.endswith("_blocks")
            packed = (*tensor.shape[:-2], tensor.shape[-2] * tensor.shape[-1]) if is_blocks else tensor.shape
            group = _GROUPS.get(scale.code, 0)
            axis = next((axis for axis in (-1, -2) if group and scale.shape == _grid(packed, axis, group)), 0)
            if axis == 0 or (axis == -2 and is_blocks):
                yield Problem(
                    (name, names.scale),
                    f"{names.scale}: expected a scale of {' or '.join(_GROUPS)} for each group of 16 or 32 numbers of "
                    f"{name} {list(tensor.shape)}, found {scale.code} {list(scale.shape)}",
                )
                continue
            if names.overall in stored:
                parts["global_scale"] = names.overall
            problem = _global_problem(parts, stored, group, names.overall)
            if problem:
                yield Problem(tuple(parts.values()), problem)
                continue
            shape = _spread(packed, axis, 2)
            if is_blocks:
                shape = (*shape[:-2], shape[-1], shape[-2])
            yield cls(names.meant, shape, parts, group, axis, is_blocks, name.endswith("_packed"))

    def dequantize(self, parts: "Mapping[str, torch.Tensor]", box: Box, out: "torch.Tensor") -> None:
        """See `QuantizedTensor`; in float32 arithmetic, rounded once."""
        import torch

        from megatron.bridge.models.hf_pretrained.quantization import decode

        packed, scales = parts["weight"].view(torch.uint8), parts["scale"]
        packed = packed.flatten(-2) if packed.dim() > scales.dim() else packed
        if self.axis == -2:
            packed, scales = packed.mT, scales.mT
        is_turned = self.is_transposed != (self.axis == -2)
        matrix = (box[-1], box[-2]) if is_turned else box[-2:]
        overall = parts["global_scale"].float().reshape(-1) if "global_scale" in parts else None
        for place, target in places(box, out):
            codes = decode.packed_codes(packed[place], decode.FLOAT4)
            factor = None if overall is None else overall[place[0] if len(overall) > 1 else 0]
            grid = decode.Scales(scales[place], (1, self.group), overall=factor, divides=self.divides)
            decode.dequantize_matrix(codes, grid, matrix, target.mT if is_turned else target)


class _Names(NamedTuple):
    meant: str
    scale: str
    overall: str


def _names(name: str, stored: Mapping[str, Stored]) -> _Names | None:
    """What the companions of a tensor would be called, if it looks like a tensor of 4-bit floats."""
    if name.endswith("_blocks"):
        meant = name.removesuffix("_blocks")
        return _Names(meant, f"{meant}_scales", "")
    if name.endswith("_packed"):
        meant = name.removesuffix("_packed")
        return _Names(meant, f"{meant}_scale", f"{meant}_global_scale")
    for scale in scale_names(name):
        is_fine = scale in stored and stored[scale].code in _GROUPS
        if is_fine or f"{scale}_2" in stored:
            return _Names(name, scale, f"{scale}_2")
    return None


def _spread(shape: Shape, axis: int, factor: int) -> Shape:
    spread = list(shape)
    spread[axis] *= factor
    return tuple(spread)


def _grid(packed: Shape, axis: int, group: int) -> Shape | None:
    grid = list(_spread(packed, axis, 2))
    if grid[axis] % group:
        return None
    grid[axis] //= group
    return tuple(grid)


def _global_problem(parts: Mapping[str, str], stored: Mapping[str, Stored], group: int, overall: str) -> str | None:
    name = parts["weight"]
    if "global_scale" not in parts:
        return (
            f"{name}: NVFP4 without the scale of the whole tensor: expected {overall} beside it"
            if group == 16
            else None
        )
    scale = stored[overall]
    num_numbers = prod(scale.shape)
    leading = stored[name].shape[:-2]
    is_per_matrix = len(leading) == 1 and scale.shape[:1] == leading and num_numbers == leading[0]
    if scale.code != "F32" or not (num_numbers == 1 or is_per_matrix):
        return (
            f"{overall}: expected one F32 number for {name} {list(stored[name].shape)}, or one for each of its "
            f"matrices, found {scale.code} {list(scale.shape)}"
        )
    return None
