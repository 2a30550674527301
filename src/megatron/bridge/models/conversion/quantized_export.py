"""Exports in a quantised form: which weights are quantised, and which stored tensors take the place of each."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.conversion.hf_files import TensorBlocks
from megatron.bridge.models.conversion.plan import WeightConversionTask
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.quantization.quantize import Quantizer
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo
from megatron.bridge.transport.boxes import Shape

# The weights of linear layers, except for routers, embeddings and the indexers of sparse attention.
_LINEAR = re.compile(r".*\.linear_\w+\.weight\d*")
_NOT_LINEAR = ".indexer."


def quantizer_of(name: str, hf_pretrained: "HFModel") -> "Quantizer":
    """The quantised form with a name: "fp8", "mxfp4", or "source" for that of the source.

    Raises:
        QuantizationError: another name, or the source is not quantised.
    """
    from megatron.bridge.models.hf_pretrained.quantization.quantize import QUANTIZERS
    from megatron.bridge.models.hf_pretrained.quantization.requantize import SourceQuantizer

    if name == SourceQuantizer.NAME:
        state = hf_pretrained.state if getattr(hf_pretrained, "has_weights", False) else None
        if not isinstance(state, DequantizedSource):
            raise QuantizationError(
                f"{getattr(hf_pretrained, 'model_name_or_path', 'the source')}: is not quantised, so there is no form "
                f"of it to export in; choose {' or '.join(QUANTIZERS)}"
            )
        return SourceQuantizer(state, hf_pretrained.quantization_config)
    if name not in QUANTIZERS:
        raise QuantizationError(f"quantization {name!r}: expected {', '.join((*QUANTIZERS, SourceQuantizer.NAME))}")
    return QUANTIZERS[name]()


def weights_to_quantize(tasks: Iterable["WeightConversionTask | None"], quantizer: "Quantizer") -> dict[str, "Shape"]:
    """HF names and shapes of the weights, among those that the tasks export, that have a quantised form."""
    return {
        name: shape
        for task in tasks
        if task is not None and (quantizer.IS_GIVEN or _is_linear(task.global_param_name))
        for name, shape in task.hf_shapes.items()
        if quantizer.parts(name, shape) is not None
    }


def _is_linear(param_name: str) -> bool:
    return _LINEAR.fullmatch(param_name) is not None and _NOT_LINEAR not in param_name


def quantized(weights: Mapping[str, "Tensor"], quantizer: "Quantizer", chosen: Container[str]) -> dict[str, "Tensor"]:
    """HF tensors by name, with the stored tensors in place of each chosen weight."""
    exported: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name not in chosen:
            exported[name] = weight
        else:
            stored = quantizer.unchanged(name, lambda whole=weight: [whole])  # type: ignore[misc]
            exported |= stored or quantizer.quantize(name, weight)
    return exported


def quantized_shards(
    shards: Mapping[str, Sequence[TensorInfo]], quantizer: "Quantizer", chosen: Container[str]
) -> dict[str, list[TensorInfo]]:
    """The files of an export, with the stored tensors in place of each chosen weight.

    They go into the weight's file, or where the source has them if it is quantised in the same form.
    """
    placed: dict[str, TensorInfo] = {}
    for filename, infos in shards.items():
        for info in infos:
            parts = quantizer.parts(info.name, info.shape) if info.name in chosen else None
            for name, (shape, dtype) in (parts or {info.name: (info.shape, info.dtype)}).items():
                placed[name] = TensorInfo(name, shape, dtype, quantizer.filename(name) or filename)
    first = next(iter(shards))
    for name, tensor in quantizer.further().items():
        placed[name] = TensorInfo(name, tuple(tensor.shape), tensor.dtype, quantizer.filename(name) or first)
    return {
        filename: [info for info in placed.values() if info.filename == filename]
        for filename in dict.fromkeys(info.filename for info in placed.values())
    }


def not_converted(shapes: Mapping[str, "Shape"], chosen: Container[str]) -> list[str]:
    """The modules whose matrix is not quantised."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and name not in chosen
    ]


class QuantizedBlocks:
    """Stored tensors in blocks of rows, made from weights in blocks of rows.

    Args:
        weights: the weights.
        quantizer: the form to quantise them in.
        shapes: the names and shapes of the weights to quantise.

    Attributes:
        parts: for each of these weights, its stored tensors with shape and dtype, first the one in its own place.
    """

    def __init__(self, weights: TensorBlocks, quantizer: "Quantizer", shapes: Mapping[str, "Shape"]):
        self._weights, self._quantizer, self._shapes = weights, quantizer, shapes
        self.parts = {name: parts for name, shape in shapes.items() if (parts := quantizer.parts(name, shape))}
        self._owner = {part: name for name, parts in self.parts.items() for part in parts}
        # Tensors that are there already, and those made together with a weight that come later in its file.
        self._waiting: dict[str, Tensor] = quantizer.further()

    def blocks(self, name: str, block_bytes: int) -> Iterator["Tensor"]:
        """See `TensorBlocks`; `name` is that of a stored tensor."""
        owner = self._owner.get(name)
        if name in self._waiting:
            yield self._waiting.pop(name)
            return
        if owner is None:
            yield from self._weights.blocks(name, block_bytes)
            return
        is_weight = name == next(iter(self.parts[owner]))
        made: dict[str, list[Tensor]] = {part: [] for part in self.parts[owner]}
        for stored in self._made(owner, block_bytes):
            for part, tensor in stored.items():
                if part == name and is_weight:
                    yield tensor
                elif part == name or is_weight:
                    made[part].append(tensor)
        if not is_weight:
            yield torch.cat(made[name]) if len(made[name]) > 1 else made[name][0]
            return
        for part, tensors in made.items():
            if part != name:
                self._waiting[part] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def _made(self, name: str, block_bytes: int) -> Iterator[dict[str, "Tensor"]]:
        """The stored tensors of a weight, block by block."""

        def rows() -> Iterator["Tensor"]:
            return self._weights.blocks(name, block_bytes)

        stored = self._quantizer.unchanged(name, rows)
        if stored is not None:
            yield stored
            return
        shape = self._shapes[name]
        multiple = self._quantizer.row_multiple(name, shape)
        row_bytes = prod(shape[1:]) * 4  # computed in float32
        for block in _in_multiples(rows(), max(block_bytes // row_bytes // multiple, 1) * multiple):
            yield self._quantizer.quantize(name, block)


def _in_multiples(blocks: Iterable["Tensor"], num_rows: int) -> Iterator["Tensor"]:
    """The same rows in blocks of `num_rows` rows; the last block may have fewer."""
    pending: list[Tensor] = []
    for block in blocks:
        while len(block):
            missing = num_rows - sum(map(len, pending))
            pending.append(block[:missing])
            block = block[missing:]
            if sum(map(len, pending)) == num_rows:
                yield torch.cat(pending) if len(pending) > 1 else pending[0]
                pending = []
    if pending:
        yield torch.cat(pending) if len(pending) > 1 else pending[0]
