"""8-bit numbers (FP8 or integers) that are multiplied by a scale: one per tensor, channel, group or block."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.tensor import (
    Problem,
    QuantizedTensor,
    Stored,
    block_shape,
    group_weights,
    places,
    scale_names,
)
from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.hf_pretrained.config import JsonObject

FLOAT8_CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
EXPONENT_CODES = ("F8_E8M0", "U8")
_NAMES = {"F8_E4M3": "FP8 (E4M3)", "F8_E5M2": "FP8 (E5M2)", "I8": "INT8"}
_COMPANIONS = ("_scale_inv", "_scale", "_zero_point")
_SCALE_CODES = ("F32", "F16", "BF16", *EXPONENT_CODES)


@dataclass(frozen=True)
class ScaledTensor(QuantizedTensor):
    """`weight * scale`, or `(weight - zero_point) * scale`, with 8-bit weights.

    The forms: FP8 in blocks (`weight_scale_inv`, DeepSeek-V3), or with a scale per tensor (Ministral 3, ModelOpt) or
    per channel (compressed-tensors), INT8 (compressed-tensors), MXFP8 (scales that are exponents). transformers 5.23
    calls them "fp8", "compressed-tensors" and "modelopt". bitsandbytes 0.50's INT8 has `SCB`, the largest value of each
    row, beside `weight`: the number is `weight * SCB / 127`, with the order and rounding of `int8_vectorwise_dequant`.

    Attributes:
        code: the safetensors dtype of the weight.
        block: for each axis, how many elements one scale applies to.
        last: a number that the result is multiplied by.
        is_read: whether the numbers are known to be ordered by rows (bitsandbytes' `weight_format`).
    """

    code: str = "F8_E4M3"
    block: tuple[int, ...] = ()
    last: float | None = None
    is_read: bool = False

    @property
    def format(self) -> str:
        name = _NAMES.get(self.code, self.code) if self.last is None else "bitsandbytes INT8"
        if self.block == self.shape:
            return f"{name}, a scale per tensor"
        if self.block[-2:] == (1, self.shape[-1]):
            return f"{name}, a scale per channel"
        return f"{name}, a scale per block of {' x '.join(map(str, self.block[-2:]))}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: "JsonObject") -> Iterator[QuantizedTensor | Problem]:
        blocks: dict[tuple[object, ...], Shape] = {}  # by shapes and dtypes, which many experts have in common
        for name, tensor in stored.items():
            if tensor.code not in (*FLOAT8_CODES, "I8") or name.endswith(_COMPANIONS):
                continue
            stem = name.removesuffix("weight")
            parts = {"weight": name}
            scale = next((scale_name for scale_name in scale_names(name) if scale_name in stored), None)
            is_bitsandbytes = scale is None and tensor.code == "I8" and f"{stem}SCB" in stored
            if is_bitsandbytes:
                scale = f"{stem}SCB"
            if scale is None:
                continue  # another kind's, or nobody's
            parts["scale"] = scale
            others = {"zero_point": f"{name}_zero_point", "order": f"{stem}weight_format" if is_bitsandbytes else ""}
            parts |= {role: other for role, other in others.items() if other in stored}
            last = 1 / 127 if is_bitsandbytes else None
            alike = (last, *((role, stored[part].shape, stored[part].code) for role, part in parts.items()))
            try:
                if alike not in blocks:
                    blocks[alike] = _block(parts, stored, config)
            except QuantizationError as error:
                yield Problem(tuple(parts.values()), str(error))
                continue
            yield cls(name, tensor.shape, parts, tensor.code, blocks[alike], last)

    @property
    def unread(self) -> tuple[str, ...]:
        return ("order",) if "order" in self.parts and not self.is_read else ()

    def read(self, contents: Mapping[str, bytes]) -> "ScaledTensor":
        order = int.from_bytes(contents["order"], "little")
        if order != 0:
            raise QuantizationError(
                f"{self.parts['order']}: order {order} of the numbers of {self.name}; only 0 (rows) can be read, as "
                "with bitsandbytes 0.50"
            )
        return ScaledTensor(self.name, self.shape, self.parts, self.code, self.block, self.last, is_read=True)

    def dequantize(self, parts: "Mapping[str, torch.Tensor]", box: Box, out: "torch.Tensor") -> None:
        """See `QuantizedTensor`; in float32 arithmetic, rounded once (bitsandbytes' INT8: twice)."""
        from megatron.bridge.models.hf_pretrained.quantization import decode

        weight, grid = parts["weight"], self._grid(parts["scale"])
        zeros = self._grid(parts["zero_point"]) if "zero_point" in parts else None
        num_rows, num_columns = (1, 1, *self.block)[-2:]
        if len(box) < 2:  # a vector is a matrix of one row
            weight, grid, out = weight.reshape(1, -1), grid.reshape(1, -1), out.reshape(1, -1)
            zeros = zeros if zeros is None else zeros.reshape(1, -1)
            box = ((0, 1), *box) if box else ((0, 1), (0, 1))
        for place, target in places(box, out):
            blocks = tuple(index // size for index, size in zip(place, self.block, strict=False))
            zero = None if zeros is None else zeros[blocks]
            scales = decode.Scales(grid[blocks], (num_rows, num_columns), zero, last=self.last)
            decode.dequantize_matrix(decode.byte_codes(weight[place]), scales, box[-2:], target)

    def _grid(self, scale: "torch.Tensor") -> "torch.Tensor":
        """The scales (or zero points), with as many axes as the tensor."""
        if scale.numel() == 1:
            return scale.reshape((1,) * len(self.shape))
        return scale.reshape(*scale.shape, *(1,) * (len(self.shape) - scale.dim()))


def _block(parts: Mapping[str, str], stored: Mapping[str, Stored], config: "JsonObject") -> Shape:
    name, scale_name = parts["weight"], parts["scale"]
    tensor, scale = stored[name], stored[scale_name]
    allowed = ("F32", "F16", "BF16") if tensor.code == "I8" else _SCALE_CODES
    if scale.code not in allowed:
        raise QuantizationError(
            f"{scale_name}: a scale of {name} ({tensor.code}) must be {', '.join(allowed)}, found {scale.code}"
        )
    if "zero_point" not in parts and tensor.code == "I8" and _is_asymmetric(config):
        raise QuantizationError(f"{name}: quantization_config says zero points, but {name}_zero_point is absent")
    if "zero_point" in parts:
        zero_name = parts["zero_point"]
        zero = stored[zero_name]
        if tensor.code != "I8" or zero.code != "I8" or zero.shape != scale.shape:
            raise QuantizationError(
                f"{zero_name}: expected I8 {list(scale.shape)}, for INT8 numbers and as {scale_name}, "
                f"found {zero.code} {list(zero.shape)} for {tensor.code}"
            )
    if "order" in parts and (stored[parts["order"]].code, stored[parts["order"]].shape) not in (
        ("U8", ()),
        ("U8", (1,)),
    ):
        raise QuantizationError(f"{parts['order']}: expected one number as U8, found {stored[parts['order']].code}")
    if scale_name.endswith("SCB") and (len(tensor.shape) != 2 or scale.shape != tensor.shape[:1]):
        raise QuantizationError(
            f"{scale_name}: expected a number for each row of {name} {list(tensor.shape)}, found {list(scale.shape)}"
        )
    return block_shape(name, tensor.shape, scale_name, scale.shape, _stated_blocks(scale.code, config))


def _stated_blocks(scale_code: str, config: "JsonObject") -> list[Shape]:
    """The blocks that a scale can have. A weight that is stored transposed has transposed blocks."""
    blocks: list[Shape] = []
    if size := config.get("weight_block_size"):
        blocks += [tuple(size), tuple(reversed(size))]
    for weights in group_weights(config):
        if size := weights.get("block_structure"):
            blocks.append(tuple(size))
        if size := weights.get("group_size"):
            blocks.append((1, size))
    # The exponents of MXFP8 (bytes) have groups of 32, whatever other tensors have.
    if scale_code == "U8" or (scale_code == "F8_E8M0" and blocks):
        blocks.append((1, 32))
    return blocks


def _is_asymmetric(config: "JsonObject") -> bool:
    """Whether compressed-tensors' config has integer weights, all of them with zero points."""
    integers = [weights for weights in group_weights(config) if weights.get("type") == "int"]
    return bool(integers) and not any(weights.get("symmetric", True) for weights in integers)
