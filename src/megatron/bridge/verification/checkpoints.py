"""The proof that two checkpoints hold the same weights, bit for bit, whatever form each of them has.

Two Hugging Face folders are compared by tensor names, a Hugging Face folder and a torch_dist checkpoint through the
plan of their conversion, and two torch_dist checkpoints by keys and positions, however each was cut into chunks.
Everything is compared as bytes, block by block: NaNs are equal to themselves, and 0.0 is not equal to -0.0.

The rows that pad a vocabulary are no weights: their number depends on the tensor-parallel size of a save. Against a
Hugging Face folder, whose vocabulary says which rows these are, they are left out, and `Verification.ignored` says
whether they are zero. Between two torch_dist checkpoints, rows that only one of them has must be zero.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.hf_pretrained import hub
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, load_config
from megatron.bridge.models.hf_pretrained.quantization.source import detect_in, open_weights
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, TensorInfo, WeightSource, has_weights
from megatron.bridge.models.run_config import read_provider
from megatron.bridge.training.checkpoint_origin import holds_checkpoint, kept_hf_folder
from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME, TRACKER_NAME, iteration_folder
from megatron.bridge.verification.bits import as_bytes, bit_difference

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron.bridge.models.conversion.offline import CheckpointWeights
    from megatron.bridge.transport.boxes import Box, Shape
    from megatron.bridge.transport.checkpoint_metadata import StoredTensor
    from megatron.bridge.transport.progress import Progress
    from megatron.bridge.transport.torch_dist import TorchDistReader

_BLOCK_BYTES = 4 * 2**20


class Difference(NamedTuple):
    """What is not the same.

    Attributes:
        name: of the tensor: the HF name, or the key if both are torch_dist checkpoints.
        kind: "missing in A", "missing in B", "shape", "dtype" or "values".
        detail: of values: how many elements differ, the index of the first and its bits in A and B.
    """

    name: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}{': ' if self.detail else ''}{self.detail}"


@dataclass
class Verification:
    """The result of a comparison.

    Attributes:
        num_tensors: tensors that both checkpoints have, and that were compared.
        num_bytes: bytes of their values.
        differences: one for each tensor that is not the same.
        ignored: what was left out of the comparison, with the reason.
    """

    num_tensors: int = 0
    num_bytes: int = 0
    differences: list[Difference] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether both hold the same weights, bit for bit, and any at all."""
        return not self.differences and self.num_tensors > 0


def verify_checkpoints(
    a: str | Path, b: str | Path, *, bridge: AutoBridge | None = None, show_progress: bool = False
) -> Verification:
    """Compares the weights of two checkpoints bit for bit, streaming: memory does not grow with the model.

    Args:
        a, b: each a Hugging Face folder, a hub id, or a torch_dist checkpoint (its folder, or one of its iterations)
            that this package or megatron-core saved from any parallel layout.
        bridge: says how the two forms correspond, if one is a Hugging Face folder and the other a torch_dist
            checkpoint. Default: by the config that the torch_dist checkpoint keeps with its tokenizer, or, if it has
            none, that of the Hugging Face folder.

    Raises:
        CheckpointError: a path is neither kind of checkpoint or both, or a checkpoint is damaged.
        PlanError: the torch_dist checkpoint does not hold the weights of its model.
        HubError: a hub id cannot be found.
    """
    from megatron.bridge.transport.progress import Progress

    opened_a, opened_b = _same_reading(_open(a), _open(b))
    with Progress("verifying", None, enabled=show_progress) as progress:
        if isinstance(opened_a, WeightSource):
            if isinstance(opened_b, WeightSource):
                result = _compare_named(opened_a, opened_b, progress)
            else:
                result = _compare_forms(opened_a, opened_b, True, bridge, progress)
        elif isinstance(opened_b, WeightSource):
            result = _compare_forms(opened_b, opened_a, False, bridge, progress)
        else:
            result = _compare_stored(opened_a, opened_b, progress)
    for opened in (opened_a, opened_b):
        opened.files.check()
    return result


type _Opened = WeightSource | TorchDistReader


def _open(path: str | Path) -> "_Opened":
    """The weights of a Hugging Face folder as they are stored, or the reader of a torch_dist checkpoint."""
    folder = hub.resolve(path)
    is_hf = has_weights(folder)
    if is_hf == holds_checkpoint(folder):
        raise CheckpointError(
            f"{folder}: {'both' if is_hf else 'neither'} a Hugging Face folder (*.safetensors) "
            f"{'and' if is_hf else 'nor'} a Megatron checkpoint (metadata.json, iter_NNNNNNN, {TRACKER_NAME}). "
            "Give the folder that holds one of them."
        )
    if is_hf:
        return SafetensorsSource(folder)
    from megatron.bridge.transport.torch_dist import TorchDistReader

    return TorchDistReader(iteration_folder(folder))


def _same_reading(a: "_Opened", b: "_Opened") -> "tuple[_Opened, _Opened]":
    """Both checkpoints, with quantised weights read as numbers if only one of them has any."""
    a_is_quantized, b_is_quantized = (isinstance(o, SafetensorsSource) and bool(detect_in(o).tensors) for o in (a, b))
    if a_is_quantized == b_is_quantized:
        return a, b
    return (open_weights(a.folder), b) if a_is_quantized else (a, open_weights(b.folder))


class _Form(NamedTuple):
    """What must be the same of two tensors before their values can be compared."""

    shape: "Shape"
    dtype: "torch.dtype"


def _forms(tensors: "Mapping[str, TensorInfo] | Mapping[str, StoredTensor]") -> dict[str, _Form]:
    return {name: _Form(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _comparable(a: Mapping[str, _Form], b: Mapping[str, _Form], result: Verification) -> Iterator[str]:
    """The names of the tensors that have the same form on both sides; notes the others."""
    result.differences += [Difference(name, "missing in B") for name in a if name not in b]
    result.differences += [Difference(name, "missing in A") for name in b if name not in a]
    in_both = [name for name in a if name in b]
    result.num_tensors = len(in_both)
    for name in in_both:
        if a[name].shape != b[name].shape:
            shapes = f"{list(a[name].shape)} in A, {list(b[name].shape)} in B"
            result.differences.append(Difference(name, "shape", shapes))
        elif a[name].dtype != b[name].dtype:
            result.differences.append(Difference(name, "dtype", f"{a[name].dtype} in A, {b[name].dtype} in B"))
        else:
            yield name


class _Values:
    """The elements of one tensor that differ, as far as it has been compared."""

    def __init__(self, shape: "Shape"):
        self._shape = shape
        self._num_different = 0
        self._first: tuple[int, str] | None = None

    def add(self, a: "Tensor", b: "Tensor", flat_index: Callable[[int], int]) -> None:
        """Compares two parts of the same shape. `flat_index(i)`: place of the part's element i in the tensor."""
        difference = bit_difference(a, b)
        if difference is None:
            return
        self._num_different += difference.num_elements
        bits_a, bits_b = difference.first_bits
        first = flat_index(difference.first), f"{bits_a} in A, {bits_b} in B"
        self._first = min(self._first or first, first)

    def differences(self, name: str) -> list[Difference]:
        """One, or none if all that was compared is the same."""
        import numpy

        if self._first is None:
            return []
        at, bits = self._first
        index = [int(i) for i in numpy.unravel_index(at, self._shape)]
        counts = f"{self._num_different} of {prod(self._shape)} elements"
        return [Difference(name, "values", f"{counts}, first at {index}: {bits}")]


# Two Hugging Face folders


def _compare_named(a: WeightSource, b: WeightSource, progress: "Progress") -> Verification:
    result = Verification()
    for name in _comparable(_forms(a.infos), _forms(b.infos), result):
        _compare_blocks(name, [a.read(name)], b.read(name), True, result, progress)
    return result


def _compare_blocks(
    name: str,
    blocks: "Iterable[Tensor]",
    whole: "Tensor",
    blocks_are_a: bool,
    result: Verification,
    progress: "Progress",
) -> None:
    """Compares a tensor that comes in consecutive blocks of rows with one that is there whole."""
    flat, position, values = whole.reshape(-1), 0, _Values(tuple(whole.shape))
    for block in blocks:
        for part in block.reshape(-1).split(max(1, _BLOCK_BYTES // block.itemsize)):
            other = flat[position : position + part.numel()]
            if part.numel() == other.numel():
                a, b = (part, other) if blocks_are_a else (other, part)
                values.add(a, b, partial(operator.add, position))
            position += part.numel()
            progress.advance(part.nbytes)
    if position != whole.numel():  # a family's hook gave another shape than the plan has
        result.differences.append(Difference(name, "shape", f"{position} of {whole.numel()} elements"))
    result.num_bytes += whole.nbytes
    result.differences += values.differences(name)


# A Hugging Face folder and a torch_dist checkpoint


def _compare_forms(
    source: WeightSource, reader: "TorchDistReader", hf_is_a: bool, bridge: AutoBridge | None, progress: "Progress"
) -> Verification:
    weights = _as_hf(source, reader, bridge)
    plan = weights.plan
    shapes = plan.hf_shapes() | {name: plan.hf_shapes()[same_as] for name, same_as in plan.tied.items()}
    stored = {name: _Form(tuple(shape), weights.dtypes[name]) for name, shape in shapes.items()}
    forms = _forms(source.infos)
    expected = {name: form for name, form in forms.items() if name in shapes or name not in plan.dropped}
    result = Verification(ignored={name: reason for name, reason in plan.dropped.items() if name not in expected})
    for name in _comparable(expected, stored, result) if hf_is_a else _comparable(stored, expected, result):
        blocks = weights.blocks(name, _BLOCK_BYTES)
        _compare_blocks(name, blocks, source.read(name), not hf_is_a, result, progress)
    _note_padding(weights, reader, result)
    return result


def _as_hf(source: WeightSource, reader: "TorchDistReader", bridge: AutoBridge | None) -> "CheckpointWeights":
    from megatron.bridge import runtime

    runtime.enter()
    from megatron.bridge.models.conversion.offline import CheckpointWeights

    if bridge is None:
        folder = kept_hf_folder(reader.folder) or source.folder
        if not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{reader.folder}: no tokenizer/{CONFIG_NAME}, and no {CONFIG_NAME} in {source.folder}: "
                "nothing says how the two correspond; give a bridge"
            )
        bridge = AutoBridge.from_hf_config(load_config(folder))
    has_run_config = (reader.folder / RUN_CONFIG_NAME).is_file()
    provider = read_provider(reader.folder) if has_run_config else bridge.to_megatron_provider(load_weights=False)
    hf_pretrained = PreTrainedCausalLM(source.folder, bridge.hf_pretrained.config)
    return CheckpointWeights(bridge._model_bridge, hf_pretrained, provider, reader.folder)


def _note_padding(weights: "CheckpointWeights", reader: "TorchDistReader", result: Verification) -> None:
    from megatron.bridge.models.conversion.param_mapping import VOCABULARY_WEIGHTS

    for task in weights.plan:
        key, num_rows = task.shards[0].key, next(iter(task.hf_shapes.values()))[0]
        num_padding = reader.tensors[key].shape[0] - num_rows
        if task.global_param_name in VOCABULARY_WEIGHTS and num_padding > 0:
            zero = "zero" if _is_zero(reader, key, num_rows) else "not zero"
            result.ignored[key] = f"{num_padding} row(s) of vocabulary padding, {zero}"


def _is_zero(reader: "TorchDistReader", key: str, first_row: int) -> bool:
    """Whether every bit of the rows from `first_row` on is zero."""
    shape = reader.tensors[key].shape
    box = ((first_row, shape[0]), *((0, size) for size in shape[1:]))
    blocks = _row_blocks(box, reader.tensors[key].dtype.itemsize)
    parts = (part for block in blocks for _, part in reader.parts(key, block))
    return not any(as_bytes(part).any() for part in parts)


# Two torch_dist checkpoints


def _compare_stored(a: "TorchDistReader", b: "TorchDistReader", progress: "Progress") -> Verification:
    from megatron.bridge.models.conversion.offline import is_weight
    from megatron.bridge.models.conversion.param_mapping import VOCABULARY_WEIGHTS

    result = Verification()
    forms_a, forms_b = (
        {key: form for key, form in _forms(reader.tensors).items() if is_weight(key)} for reader in (a, b)
    )
    for key in VOCABULARY_WEIGHTS:
        shapes = {forms[key].shape for forms in (forms_a, forms_b) if key in forms}
        if len(shapes) == 1 or () in shapes or len({shape[1:] for shape in shapes}) != 1:
            continue
        num_rows, *row = min(shapes)
        if _is_zero(a, key, num_rows) and _is_zero(b, key, num_rows):
            result.ignored[key] = f"rows from {num_rows} on, which only one has, and which are zero"
            for forms in (forms_a, forms_b):
                forms[key] = _Form((num_rows, *row), forms[key].dtype)
    for key in _comparable(forms_a, forms_b, result):
        shape, dtype = forms_a[key]
        result.differences += _compare_chunks(a, b, key, shape, progress).differences(key)
        result.num_bytes += prod(shape) * dtype.itemsize
    return result


def _compare_chunks(
    a: "TorchDistReader", b: "TorchDistReader", key: str, shape: "Shape", progress: "Progress"
) -> _Values:
    """Compares a tensor chunk by chunk of A, with whatever chunks B has there; rows beyond `shape` are left out."""
    from megatron.bridge.transport.boxes import common_box, shifted, slices, whole

    tensor, values, num_compared = a.tensors[key], _Values(shape), 0
    for chunk in tensor.chunks:
        box = tuple((start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        inside = common_box(box, whole(shape))
        for block in _row_blocks(inside, tensor.dtype.itemsize) if inside is not None else ():
            part = a.read(key, block)
            for other_box, other in b.parts(key, block):
                values.add(
                    part[slices(shifted(other_box, block))], other, partial(_flat_index, box=other_box, shape=shape)
                )
            num_compared += part.numel()
            progress.advance(part.nbytes)
    if num_compared != prod(shape):
        raise CheckpointError(f"{a.folder / '.metadata'}: the chunks of {key} do not cover it: it is damaged")
    return values


def _flat_index(at: int, box: "Box", shape: "Shape") -> int:
    """The place in a tensor of the element that has place `at` in a box of it; both count elements in order."""
    import numpy

    index = numpy.unravel_index(at, [stop - start for start, stop in box])
    return int(numpy.ravel_multi_index([start + i for (start, _), i in zip(box, index, strict=True)], shape))


def _row_blocks(box: "Box", itemsize: int) -> "Iterator[Box]":
    """A box, cut along its first axis that is longer than 1 into blocks of a bounded number of bytes."""
    axis = next((axis for axis, (start, stop) in enumerate(box) if stop - start > 1), None)
    if axis is None:
        yield box
        return
    row_bytes = prod(stop - start for start, stop in box[axis + 1 :]) * itemsize
    num_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(*box[axis], num_rows):
        yield (*box[:axis], (start, min(start + num_rows, box[axis][1])), *box[axis + 1 :])
