"""Integers of 2, 4 or 8 bits, several to an int32 word, with a scale and a zero point for each group or channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.tensor import (
    Problem,
    QuantizedTensor,
    Stored,
    group_weights,
    places,
)
from megatron.bridge.transport.boxes import Box

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from megatron.bridge.models.hf_pretrained.config import JsonObject
    from megatron.bridge.models.hf_pretrained.quantization.decode import Codes

    # By role, the name of a tensor's part and the stored tensor.
    Found = Mapping[str, tuple[str, Stored]]

_NAMES = {"compressed-tensors": "pack-quantized", "gptq": "GPTQ", "awq": "AWQ"}
_SCALE_CODES = ("F32", "F16", "BF16")
# Words with a one in each field, by the bits of a field.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


class _Scheme(NamedTuple):
    """What a config says about the weights of some layers. A group size of 0 is one group; None is unknown."""

    bits: int
    group_size: int | None
    is_symmetric: bool | None


@dataclass(frozen=True)
class PackedIntTensor(QuantizedTensor):
    """`(number - zero_point) * scale`; `shape` is `[..., N, K]`, with N outputs and K inputs.

    The layouts, in which G is the number of groups of inputs and b the bits of a number, lowest first in a word:

    - "compressed-tensors" (0.20, "pack-quantized"): `weight_packed` `[N, ceil(K * b / 32)]`, `weight_scale` `[N, G]` or
      one number, `weight_shape` `[2]`, perhaps `weight_zero_point` `[ceil(N * b / 32), G]`, packed along N, and
      `weight_g_idx` `[K]`, the group of each input (-1: not used). Half their range is added to numbers and zero points
      before they are stored; without zero points, that half is subtracted.
    - "gptq": `qweight` `[ceil(K * b / 32), N]`, packed along K, `qzeros` `[G, ceil(N * b / 32)]`, packed along N,
      `scales` `[G, N]`, `g_idx` `[K]`. Format "gptq" stores zero points minus one, "gptq_v2" as they are. The one is
      added to whole words, as GPTQModel 7.7 does (`convert_gptq_v1_to_v2_format`), because a zero point of 0 borrowed
      from its neighbour.
    - "awq": `qweight` `[K, N * b / 32]`, `qzeros` `[G, N * b / 32]`, both packed along N in the order 0, 2, 4, 6, 1, 3,
      5, 7, `scales` `[G, N]`: the version "gemm" of AutoAWQ 0.2.9 (`utils/packing_utils.py`).

    Attributes:
        layout: one of these.
        bits: the bits of a number.
        num_groups: how many groups of inputs there are, each with a scale.
        group_size: how many inputs a group has; they are side by side, unless `g_idx` says otherwise.
        is_offset: whether zero points are stored minus one.
        num_ordered: for how many inputs `weight_g_idx` gives the group, if there is one.
        schemes: what the tensor may be, before `weight_shape` is read.
    """

    layout: str = "gptq"
    bits: int = 4
    num_groups: int = 1
    group_size: int = 0
    is_offset: bool = False
    num_ordered: int | None = None
    schemes: tuple[_Scheme, ...] = ()

    @property
    def format(self) -> str:
        return f"{_NAMES[self.layout]} INT{self.bits}"

    @classmethod
    def find(cls, stored: Mapping[str, Stored], config: JsonObject) -> Iterator[QuantizedTensor | Problem]:
        schemes = _schemes(config)
        alike: dict[tuple[object, ...], PackedIntTensor] = {}  # by shapes and dtypes, which many experts have in common
        for name, tensor in stored.items():
            is_compressed = (name.endswith("_packed") and tensor.code == "I32") or (
                name.endswith(".weight_packed") and tensor.code != "U8"
            )
            if not is_compressed and not name.endswith(".qweight"):
                continue
            stem = name.removesuffix("packed").removesuffix("qweight")
            roles = ("scale", "shape", "zero_point", "g_idx") if is_compressed else ("scales", "qzeros", "g_idx")
            names = {"weight": name} | {role: part for role in roles if (part := f"{stem}{role}") in stored}
            shapes = tuple((role, stored[part].shape, stored[part].code) for role, part in names.items())
            if shapes in alike:
                yield replace(alike[shapes], name=_meant(stem), parts=names)
                continue
            found = {role: (part, stored[part]) for role, part in names.items()}
            try:
                _check_parts(stem, found, roles[:2], is_compressed)
                read = _compressed_tensors(stem, found, schemes) if is_compressed else _gptq_or_awq(stem, found, config)
            except QuantizationError as error:
                yield Problem(tuple(names.values()), str(error))
                continue
            alike[shapes] = read
            yield read

    @property
    def unread(self) -> tuple[str, ...]:
        return ("shape",) if self.schemes else ()

    def read(self, contents: Mapping[str, bytes]) -> PackedIntTensor:
        raw, num_axes = contents["shape"], len(self.shape)
        width = len(raw) // num_axes
        shape = tuple(int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width))
        num_words = -(-self.shape[-1] * self.bits // 32)
        fits = [
            scheme
            for scheme in self.schemes
            if shape[:-1] == self.shape[:-1]
            and -(-shape[-1] * scheme.bits // 32) == num_words
            and self.num_ordered in (None, shape[-1])
            and shape[-1] % self.num_groups == 0
            and (scheme.group_size is None or (scheme.group_size or shape[-1]) * self.num_groups == shape[-1])
        ]
        if len({scheme.bits for scheme in fits}) != 1:
            kinds = ", ".join(f"{scheme.bits} bits in groups of {scheme.group_size or 'K'}" for scheme in self.schemes)
            order = f", and an order of {self.num_ordered} inputs" if self.num_ordered is not None else ""
            raise QuantizationError(
                f"{self.parts['shape']}: says {list(shape)}, but {self.parts['weight']} has {num_words} words for each "
                f"of {list(self.shape[:-1])} and {self.num_groups} scales{order}, which does not fit one of: {kinds}"
            )
        return replace(self, shape=shape, bits=fits[0].bits, group_size=shape[-1] // self.num_groups, schemes=())

    def dequantize(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        """See `QuantizedTensor`; in float32 arithmetic, rounded once."""
        read = {"compressed-tensors": self._compressed_tensors, "gptq": self._gptq, "awq": self._awq}[self.layout]
        for place, target in places(box, out):
            matrices = {role: part[place] if part.dim() == len(box) else part for role, part in parts.items()}
            read(matrices, box[-2:], target)

    def _compressed_tensors(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        import torch

        from megatron.bridge.models.hf_pretrained.quantization import decode

        half, zeros, grid = 1 << (self.bits - 1), None, parts["scale"].reshape(-1, parts["scale"].shape[-1])
        if "zero_point" in parts:
            zeros = parts["zero_point"]
            if zeros.dtype == torch.int8:  # one for the whole tensor, which is not packed
                zeros = (zeros.int() + half).reshape(1, 1)
            else:
                zeros = _fields(zeros.mT, self.bits)[:, : self.shape[-2]].mT
        values = range(2 * half) if zeros is not None else range(-half, half)
        block = (self.shape[-2] if len(grid) == 1 else 1, self.group_size)
        scales = decode.Scales(grid, block, zeros, self._groups(parts))
        codes = decode.packed_codes(parts["weight"].view(torch.uint8), tuple(values))
        decode.dequantize_matrix(codes, scales, box, out)

    def _gptq(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        from megatron.bridge.models.hf_pretrained.quantization import decode

        zeros = parts["qzeros"] + _ONES[self.bits] if self.is_offset else parts["qzeros"]
        zeros = _fields(zeros, self.bits)[:, : self.shape[0]].mT
        scales = decode.Scales(parts["scales"].mT, (1, self.group_size), zeros, self._groups(parts))
        decode.dequantize_matrix(_columns_of_words(parts["weight"], self.bits), scales, box, out)

    def _awq(self, parts: Mapping[str, torch.Tensor], box: Box, out: torch.Tensor) -> None:
        from megatron.bridge.models.hf_pretrained.quantization import decode

        zeros = _fields(_in_order(parts["qzeros"]), self.bits)
        scales = decode.Scales(parts["scales"], (self.group_size, 1), zeros)
        decode.dequantize_matrix(_words_in_order(parts["weight"]), scales, (box[1], box[0]), out.mT)

    def _groups(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The group of each input, unless groups simply follow one another."""
        import torch

        groups = parts.get("g_idx")
        if groups is None or (self.layout == "compressed-tensors" and bool((groups == -1).any())):
            return None
        if int(groups.min()) < 0 or int(groups.max()) >= self.num_groups:
            raise QuantizationError(
                f"{self.parts['g_idx']}: expected groups 0 to {self.num_groups - 1}, found {int(groups.min())} to "
                f"{int(groups.max())}"
            )
        is_plain = torch.equal(groups.long(), torch.arange(len(groups)) // self.group_size)
        return None if is_plain else groups.long()


def _meant(stem: str) -> str:
    return stem.removesuffix("_") if stem.endswith("_") else f"{stem}weight"


def _check_parts(stem: str, found: Found, needed: tuple[str, ...], is_stack: bool) -> None:
    name, tensor = found["weight"]
    absent = [f"{stem}{role}" for role in needed if role not in found]
    if absent:
        raise QuantizationError(f"{name}: packed numbers without {' and '.join(absent)} beside it")
    if tensor.code != "I32" or len(tensor.shape) < 2 or (len(tensor.shape) > 2 and not is_stack):
        raise QuantizationError(f"{name}: expected I32 words of two axes, found {tensor.code} {list(tensor.shape)}")
    scale_name, scale = found[needed[0]]
    if scale.code not in _SCALE_CODES:
        raise QuantizationError(f"{scale_name}: a scale must be {', '.join(_SCALE_CODES)}, found {scale.code}")


def _expect(found: Found, role: str, codes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    name, tensor = found[role]
    if tensor.code not in codes or tensor.shape not in shapes:
        raise QuantizationError(
            f"{name}: expected {' or '.join(codes)} {' or '.join(str(list(shape)) for shape in shapes)} beside "
            f"{found['weight'][0]} {list(found['weight'][1].shape)}, found {tensor.code} {list(tensor.shape)}"
        )


def _bits(name: str, bits: int, allowed: tuple[int, ...]) -> int:
    if bits not in allowed:
        raise QuantizationError(
            f"{name}: numbers of {bits} bits; those of {', '.join(map(str, allowed))} can be read in this layout"
        )
    return bits


def _compressed_tensors(stem: str, found: Found, stated: list[_Scheme]) -> PackedIntTensor:
    name, words = found["weight"]
    scale = found["scale"][1]
    leading, num_rows = words.shape[:-1], words.shape[-2]
    num_groups = scale.shape[-1] if scale.shape else 1
    if not any(scheme.bits in (4, 8) for scheme in stated):
        _bits(name, stated[0].bits, (4, 8))
    _expect(found, "scale", _SCALE_CODES, (*leading, num_groups), *([(1,)] if num_groups == 1 else []))
    _expect(found, "shape", ("I64", "I32"), (len(words.shape),))
    schemes = [
        scheme
        for scheme in stated
        if scheme.bits in (4, 8)
        and (scheme.group_size == 0) <= (num_groups == 1)
        and (scheme.is_symmetric is None or scheme.is_symmetric != ("zero_point" in found))
    ]
    if not schemes:
        raise QuantizationError(
            f"{name}: {num_groups} scales for each row, {'with' if 'zero_point' in found else 'without'} zero points, "
            "fits no group of quantization_config (config_groups)"
        )
    bits = min(scheme.bits for scheme in schemes)
    if "zero_point" in found:
        packed = [(*leading[:-1], -(-num_rows * scheme.bits // 32), num_groups) for scheme in schemes]
        is_whole = scale.shape == (1,)
        _expect(found, "zero_point", ("I8",) if is_whole else ("I32",), *([(1,)] if is_whole else packed))
    num_ordered = None
    if "g_idx" in found:
        g_idx = found["g_idx"][1]
        num_ordered = prod(g_idx.shape)
        if len(leading) > 1 or len(g_idx.shape) != 1 or g_idx.code not in ("I32", "I64"):
            raise QuantizationError(
                f"{found['g_idx'][0]}: expected the group of each input of {name} {list(words.shape)} as I32, found "
                f"{g_idx.code} {list(g_idx.shape)}"
            )
    parts = {role: part for role, (part, _) in found.items()}
    room = words.shape[-1] * 32 // bits
    size = (schemes[0].group_size or 0) * num_groups if len(schemes) == 1 else 0
    shape = (*leading, size if size and -(-size * bits // 32) == words.shape[-1] else room)
    return PackedIntTensor(
        _meant(stem),
        shape,
        parts,
        "compressed-tensors",
        bits,
        num_groups,
        num_ordered=num_ordered,
        schemes=tuple(schemes),
    )


def _schemes(config: JsonObject) -> list[_Scheme]:
    """What packed weights can be according to the config, in any layer: only the model knows whose a group is."""
    stated = [weights for weights in group_weights(config) if weights and weights.get("type", "int") == "int"]
    return [
        _Scheme(
            weights.get("num_bits") or 0,
            (weights.get("group_size") or 0) if weights.get("strategy") == "group" else 0,
            bool(weights.get("symmetric", True)),
        )
        for weights in stated
    ] or [_Scheme(bits, None, None) for bits in (4, 8)]


def _gptq_or_awq(stem: str, found: Found, config: JsonObject) -> PackedIntTensor:
    (name, words), (_, scale), (_, zeros) = found["weight"], found["scales"], found["qzeros"]
    if len(scale.shape) != 2 or len(zeros.shape) != 2:
        raise QuantizationError(
            f"{name}: expected scales and zero points of two axes, found {list(scale.shape)} and {list(zeros.shape)}"
        )
    num_groups, num_outputs = scale.shape
    num_words = zeros.shape[1]
    bits = next((b for b in (2, 4, 8) if -(-num_outputs * b // 32) == num_words), num_words * 32 // max(num_outputs, 1))
    _expect(found, "qzeros", ("I32",), (num_groups, num_words))
    parts = {role: part for role, (part, _) in found.items()}
    stated = config.get("group_size") if not config.get("dynamic") else None
    if words.shape[1] == num_outputs:
        layout, num_inputs = "gptq", words.shape[0] * 32 // _bits(name, bits, (2, 4, 8))
        is_offset = _is_offset(name, config)
        if "g_idx" not in found and config.get("desc_act"):
            raise QuantizationError(f"{name}: desc_act of quantization_config needs {stem}g_idx, which is absent")
        if "g_idx" in found:
            _expect(found, "g_idx", ("I32", "I64"), (num_inputs,))
    elif words.shape[1] == num_words:
        layout, is_offset, num_inputs = "awq", False, words.shape[0]
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        if _bits(name, bits, (4,)) * num_outputs % 32 or version != "gemm" or "g_idx" in found:
            raise QuantizationError(f"{name}: AWQ of version {version!r}; only 'gemm' can be read, without g_idx")
    else:
        raise QuantizationError(
            f"{name}: {list(words.shape)} fits neither GPTQ nor AWQ (gemm) with scales {list(scale.shape)} and zero "
            f"points {list(zeros.shape)}"
        )
    method = str(config.get("quant_method", layout)).lower()
    if method in ("gptq", "awq") and method != layout:
        raise QuantizationError(f"{name}: stored as {layout} does, but quantization_config says {method}")
    size = int(stated) if stated and stated > 0 else -(-num_inputs // num_groups)
    if -(-num_inputs // max(size, 1)) != num_groups or (stated == -1 and num_groups != 1):
        raise QuantizationError(
            f"{found['scales'][0]}: {num_groups} groups for {num_inputs} inputs of {name}, with a group_size of "
            f"{stated}"
        )
    return PackedIntTensor(_meant(stem), (num_outputs, num_inputs), parts, layout, bits, num_groups, size, is_offset)


def _is_offset(name: str, config: JsonObject) -> bool:
    stated = config.get("checkpoint_format") or config.get("format")
    if stated is None and str(config.get("quant_method")).lower() == "gptq":
        stated = "gptq"  # as in transformers
    if stated not in ("gptq", "gptq_v2"):
        raise QuantizationError(
            f"{name}: zero points of GPTQ are stored as they are or less one; expected quantization_config to say "
            f"checkpoint_format gptq or gptq_v2, found {stated!r} of quant_method {config.get('quant_method')!r}"
        )
    return bool(stated == "gptq")


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The whole numbers `[..., W * 32 / bits]` in words `[..., W]`, lowest bits first."""
    import torch

    return (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32) & (1 << bits) - 1).flatten(-2)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """AWQ's words with their 8 numbers in order, lowest bits first; stored are the even ones, then the odd ones."""
    import numpy as np
    import torch

    halves = words.contiguous().view(torch.uint16).numpy().reshape(*words.shape, 2)
    ordered = np.take(_spread(), halves[..., 1], mode="clip")
    ordered <<= 4
    ordered |= np.take(_spread(), halves[..., 0], mode="clip")
    return torch.from_numpy(ordered.view(np.int32))


@cache
def _spread() -> NDArray[np.uint32]:
    """For each word of four 4-bit fields, the same fields with 4 bits between them."""
    import numpy as np

    half = np.arange(1 << 16, dtype=np.uint32)
    spread = np.zeros_like(half)
    for field in range(4):
        spread |= (half >> 4 * field & 15) << 8 * field
    return spread


def _words_in_order(matrix: torch.Tensor) -> Codes:
    """The codes in AWQ's words `[K, N / 8]`."""
    import torch

    from megatron.bridge.models.hf_pretrained.quantization import decode

    def codes(rows: tuple[int, int], columns: tuple[int, int], out: torch.Tensor) -> None:
        first, last = columns[0] // 8, -(-columns[1] // 8)
        packed = _in_order(matrix[slice(*rows), first:last]).view(torch.uint8)
        decode.decode_packed(packed, tuple(range(16)), (columns[0] - 8 * first, columns[1] - 8 * first), out)

    return codes


def _columns_of_words(matrix: torch.Tensor, bits: int) -> Codes:
    """The codes in GPTQ's words `[K * bits / 32, N]`, taken as a matrix `[N, K]`."""
    import torch

    from megatron.bridge.models.hf_pretrained.quantization import decode

    room = 32 // bits

    def codes(rows: tuple[int, int], columns: tuple[int, int], out: torch.Tensor) -> None:
        first, last = columns[0] // room, -(-columns[1] // room)
        words = matrix[first:last, slice(*rows)].mT.clone(memory_format=torch.contiguous_format)
        shifted = (columns[0] - room * first, columns[1] - room * first)
        decode.decode_packed(words.view(torch.uint8), tuple(range(1 << bits)), shifted, out)

    return codes
