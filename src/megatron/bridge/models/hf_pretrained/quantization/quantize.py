"""Quantising weights to FP8 in blocks and to MXFP4, in the forms that transformers loads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from megatron.bridge.models.hf_pretrained.quantization.decode import FLOAT4

FLOAT8 = torch.float8_e4m3fn
# Name, shape and dtype of the stored tensors that stand for a weight, that of the weight first.
type Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]
# Halfway between consecutive sizes of 4-bit floats; a number there goes to the size with an even code.
_FLOAT4_BOUNDS = tuple((low + high) / 2 for low, high in pairwise(FLOAT4[:8]))
_FLOAT4_MAX_EXPONENT = 2  # of 6, the largest


class Quantizer(ABC):
    """A form of quantised weights: which stored tensors stand for a weight, and how they are made."""

    NAME: ClassVar[str]
    # Whether it knows which weights are quantised; otherwise those of linear layers are.
    IS_GIVEN: ClassVar[bool] = False

    @abstractmethod
    def parts(self, name: str, shape: Sequence[int]) -> Parts | None:
        """The stored tensors for a weight; `None` if it stays as it is."""

    @abstractmethod
    def row_multiple(self, name: str, shape: Sequence[int]) -> int:
        """How many rows are quantised together: every part of a weight but the last must have a multiple of them."""

    @abstractmethod
    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The stored tensors for a weight, or for some of its rows, by name, on the weight's device."""

    def unchanged(self, name: str, rows: Callable[[], Iterable[torch.Tensor]]) -> dict[str, torch.Tensor] | None:
        """The stored tensors as they are in the source, if the weight is still the one that they stand for.

        Args:
            rows: gives the weight in consecutive blocks of rows.
        """
        return None

    def filename(self, part: str) -> str | None:
        """The file that a stored tensor belongs in; `None` for the file of its weight."""
        return None

    def further(self) -> dict[str, torch.Tensor]:
        """Stored tensors that belong to the form but to no weight, by name."""
        return {}

    @abstractmethod
    def config(self, not_converted: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` of `config.json`.

        Args:
            not_converted: the modules whose weights stay as they are.
        """


@dataclass(frozen=True)
class FP8Quantizer(Quantizer):
    """FP8 (E4M3) with a scale for each block, as DeepSeek-V3 is published, and as transformers' "fp8" reads it.

    A weight that the blocks do not divide stays as it is, as in transformers (5.23, `Fp8Quantize`), which could not
    load it otherwise.

    Attributes:
        block: the rows and columns of a block.
    """

    block: tuple[int, int] = (128, 128)

    NAME = "fp8"

    def parts(self, name: str, shape: Sequence[int]) -> Parts | None:
        if len(shape) < 2 or any(size % step for size, step in zip(shape[-2:], self.block, strict=True)):
            return None
        grid = (*shape[:-2], *(size // step for size, step in zip(shape[-2:], self.block, strict=True)))
        return {name: (tuple(shape), FLOAT8), f"{name}_scale_inv": (grid, torch.float32)}

    def row_multiple(self, name: str, shape: Sequence[int]) -> int:
        return self.block[0] if len(shape) == 2 else 1

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = quantize_blocks(weight, self.block)
        return {name: codes, f"{name}_scale_inv": scale}

    def config(self, not_converted: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(self.block),
            "modules_to_not_convert": list(not_converted),
        }


@dataclass(frozen=True)
class MXFP4Quantizer(Quantizer):
    """4-bit floats with a scale for every 32 of them, for fused experts, as gpt-oss is published.

    Source: OCP Microscaling Formats 1.0, section 6.3. The scale is the power of 2 that gives the largest number the
    exponent of 6.0; numbers are rounded to nearest, half to even, and those that are too large become 6.0.
    """

    NAME = "mxfp4"

    def parts(self, name: str, shape: Sequence[int]) -> Parts | None:
        if len(shape) != 3 or shape[1] % 32:
            return None
        experts, inputs, outputs = shape
        grid = (experts, outputs, inputs // 32)
        return {f"{name}_blocks": ((*grid, 16), torch.uint8), f"{name}_scales": (grid, torch.uint8)}

    def row_multiple(self, name: str, shape: Sequence[int]) -> int:
        return 1

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        groups = weight.float().mT.unflatten(-1, (-1, 32))
        largest = groups.abs().amax(dim=-1, keepdim=True)
        exponent = torch.frexp(largest).exponent - 1 - _FLOAT4_MAX_EXPONENT
        exponent = torch.where(largest > 0, exponent, 0).clamp(-127, 127)
        sizes = torch.ldexp(groups.abs(), -exponent).contiguous()
        bounds = torch.tensor(_FLOAT4_BOUNDS, device=weight.device)
        below, at_most = (torch.bucketize(sizes, bounds, right=right) for right in (False, True))
        codes = torch.where(below % 2 == 0, below, at_most)  # they differ on a bound only: takes the even one of them
        codes = (codes | (groups.signbit().long() << 3)).to(torch.uint8)
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return {f"{name}_blocks": packed.contiguous(), f"{name}_scales": (exponent + 127).squeeze(-1).to(torch.uint8)}

    def config(self, not_converted: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "mxfp4", "modules_to_not_convert": list(not_converted)}


def quantize_blocks(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit floats, and the float32 scale of each block, by which they are to be multiplied.

    `quantize_blocks(weight, (128, 128))` of a weight `[512, 256]` gives codes of that shape and scales `[4, 2]`.

    Args:
        weight: `[..., R, C]`; the last blocks may be cut.
        block: the rows and columns of a block.
    """
    rows, columns = (-(-size // step) for size, step in zip(weight.shape[-2:], block, strict=True))
    missing = [n * step - size for n, step, size in zip((rows, columns), block, weight.shape[-2:], strict=True)]
    padded = F.pad(weight.float(), (0, missing[1], 0, missing[0]))
    blocks = padded.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))
    limit = torch.finfo(dtype).max
    largest = blocks.abs().amax(dim=(-3, -1), keepdim=True)
    scale = torch.where(largest > 0, limit / largest, torch.ones_like(largest))
    codes = (blocks * scale).clamp(-limit, limit).to(dtype).view(padded.shape)
    codes = codes[..., : weight.shape[-2], : weight.shape[-1]].contiguous()
    return codes, (1 / scale).squeeze(-1).squeeze(-2)


QUANTIZERS: Mapping[str, type[Quantizer]] = {kind.NAME: kind for kind in (FP8Quantizer, MXFP4Quantizer)}
