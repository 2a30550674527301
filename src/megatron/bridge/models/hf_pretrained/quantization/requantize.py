"""Writing weights in the form that they have in their source, with its own bytes for those that did not change."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.float4 import Float4Tensor
from megatron.bridge.models.hf_pretrained.quantization.quantize import MXFP4Quantizer, Parts, Quantizer, quantize_blocks
from megatron.bridge.models.hf_pretrained.quantization.scaled import FLOAT8_CODES, ScaledTensor
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource


class SourceQuantizer(Quantizer):
    """The form of a quantised source.

    A weight that is, bit for bit, the one that the source stands for gets the source's bytes, whatever their form. A
    weight that was trained is quantised anew, with new scales, if its form is FP8 with scales or MXFP4.

    Args:
        source: the quantised checkpoint.
        config: its `quantization_config`.
    """

    NAME = "source"
    IS_GIVEN = True

    def __init__(self, source: DequantizedSource, config: dict[str, Any]) -> None:
        self._source, self._config = source, config

    def parts(self, name: str, shape: Sequence[int]) -> Parts | None:
        tensor = self._source.found.tensors.get(name)
        if tensor is None:
            return None
        infos = [self._source.stored.infos[part] for part in tensor.parts.values()]
        return {info.name: (info.shape, info.dtype) for info in infos}

    def row_multiple(self, name: str, shape: Sequence[int]) -> int:
        tensor = self._source.found.tensors[name]
        return tensor.block[0] if isinstance(tensor, ScaledTensor) else 1

    def filename(self, part: str) -> str | None:
        info = self._source.stored.infos.get(part)
        return None if info is None else info.filename

    def further(self) -> dict[str, torch.Tensor]:
        return {name: self._source.stored.read(name) for name in self._source.found.dropped}

    def unchanged(self, name: str, rows: Callable[[], Iterable[torch.Tensor]]) -> dict[str, torch.Tensor] | None:
        view, start = self._source.view(name), 0
        for block in rows():
            index = (slice(start, start + block.shape[0], 1), *(slice(0, size, 1) for size in view.shape[1:]))
            if not torch.equal(block.cpu(), view[index].to(block.dtype)):
                return None
            start += block.shape[0]
        return {part: self._source.stored.read(part) for part in self._source.found.tensors[name].parts.values()}

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        tensor = self._source.found.tensors[name]
        names = tensor.parts
        if isinstance(tensor, Float4Tensor) and names["weight"].endswith("_blocks"):
            return MXFP4Quantizer().quantize(name, weight)
        if isinstance(tensor, ScaledTensor) and tensor.code in FLOAT8_CODES and "zero_point" not in names:
            stored = self._source.stored.infos
            info, (rows, columns) = stored[names["scale"]], (1, *tensor.block)[-2:]
            if info.dtype.is_floating_point and info.dtype.itemsize > 1:
                codes, scale = quantize_blocks(weight, (rows, columns), stored[names["weight"]].dtype)
                return {names["weight"]: codes, names["scale"]: scale.reshape(info.shape).to(info.dtype)}
        raise QuantizationError(
            f"{name}: was changed, and its form in the source ({tensor.format}) cannot be made anew; export in another "
            "form (fp8), or without quantisation"
        )

    def config(self, not_converted: Sequence[str]) -> dict[str, Any]:
        return self._config
