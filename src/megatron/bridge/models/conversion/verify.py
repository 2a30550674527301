"""The proof that two checkpoints hold the same weights, bit for bit, whatever form each of them has.

Two Hugging Face folders are compared by tensor names, a Hugging Face folder and a torch_dist checkpoint through the
plan of their conversion, and two torch_dist checkpoints by keys and positions, however each was cut into chunks.
Everything is compared as bytes, block by block: NaNs are equal to themselves, and 0.0 is not equal to -0.0.

The rows that pad a vocabulary are no weights: their number depends on the tensor-parallel size of a save. Against a
Hugging Face folder, whose vocabulary says which rows these are, they are left out, and `Verification.ignored` says
whether they are zero. Between two torch_dist checkpoints, rows that only one of them has must be zero.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained import hub
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, load_config
from megatron.bridge.models.hf_pretrained.quantization.source import detect_in, open_weights
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, WeightSource, has_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron.bridge.models.conversion.auto_bridge import AutoBridge
    from megatron.bridge.models.conversion.offline import CheckpointWeights
    from megatron.bridge.transport.boxes import Box, Shape
    from megatron.bridge.transport.torch_dist import TorchDistReader

_BLOCK_BYTES = 4 * 2**20


class Difference(NamedTuple):
    """What is not the same.

    Attributes:
        name: of the tensor: the HF name, or the key if both are torch_dist checkpoints.
        what: "missing in A", "missing in B", "shape", "dtype" or "values".
        detail: of values: how many elements differ, the index of the first and its bits in A and B.
    """

    name: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}{': ' if self.detail else ''}{self.detail}"


@dataclass
class Verification:
    """What a comparison found.

    Attributes:
        num_tensors: that are in both checkpoints, and were compared.
        num_bytes: of their values.
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
    a: str | Path, b: str | Path, *, bridge: "AutoBridge | None" = None, show_progress: bool = False
) -> Verification:
    """Compares the weights of two checkpoints bit for bit, streaming: memory does not grow with the model.

    Args:
        a, b: each a Hugging Face folder, a hub id, or a torch_dist checkpoint (its folder, or one of its iterations)
            that this package or megatron-core saved from any parallel layout.
        bridge: says how the two forms correspond, if one is a Hugging Face folder and the other a torch_dist
            checkpoint. Default: by the config that the torch_dist checkpoint keeps beside its tokenizer, or, if it
            has none, the folder's.

    Raises:
        CheckpointError: a path is neither kind of checkpoint or both, or a checkpoint is damaged.
        PlanError: the torch_dist checkpoint does not hold the weights of its model.
        HubError: a hub id cannot be found.
    """
    from megatron.bridge.transport.progress import Progress

    sides = [_open(a), _open(b)]
    sides = _as_numbers(sides)
    with Progress("verifying", None, enabled=show_progress) as progress:
        if all(isinstance(side, WeightSource) for side in sides):
            found = _compare_named(sides[0], sides[1], progress)
        elif any(isinstance(side, WeightSource) for side in sides):
            found = _compare_forms(sides, bridge, progress)
        else:
            found = _compare_stored(sides[0], sides[1], progress)
    for side in sides:
        side.files.check()
    return found


def _as_numbers(sides: list[Any]) -> list[Any]:
    """The two sides, with quantised weights read as numbers if only one side has any."""
    quantized = [isinstance(side, SafetensorsSource) and bool(detect_in(side).tensors) for side in sides]
    if sum(quantized) != 1:
        return sides
    return [open_weights(side.folder) if found else side for side, found in zip(sides, quantized, strict=True)]


def _open(path: str | Path) -> Any:
    """The weights of a Hugging Face folder, or the reader of a torch_dist checkpoint."""
    from megatron.bridge.transport.checkpoint_folder import TRACKER_NAME, iteration_folder

    folder = hub.resolve(path)
    is_hf = has_weights(folder)
    is_megatron = any((folder / name).is_file() for name in ("metadata.json", TRACKER_NAME)) or any(
        folder.glob("iter_*")
    )
    if is_hf == is_megatron:
        raise CheckpointError(
            f"{folder}: {'both' if is_hf else 'neither'} a Hugging Face folder (*.safetensors) "
            f"{'and' if is_hf else 'nor'} a Megatron checkpoint (metadata.json, iter_NNNNNNN, {TRACKER_NAME}). "
            "Give the folder that holds one of them."
        )
    if is_hf:
        return SafetensorsSource(folder)
    from megatron.bridge.transport.torch_dist import TorchDistReader

    return TorchDistReader(iteration_folder(folder))


# Two Hugging Face folders


def _compare_named(a: WeightSource, b: WeightSource, progress: Any) -> Verification:
    found = Verification()
    for name in _common(a.infos, b.infos, found):
        if _same_form(name, a.infos[name], b.infos[name], found):
            _add_values(found, name, [a.read(name)], b.read(name), True, progress)
    return found


def _common(a: Mapping[str, Any], b: Mapping[str, Any], found: Verification) -> list[str]:
    """The names on both sides; notes the others."""
    found.differences += [Difference(name, "missing in B", "") for name in a if name not in b]
    found.differences += [Difference(name, "missing in A", "") for name in b if name not in a]
    common = [name for name in a if name in b]
    found.num_tensors = len(common)
    return common


def _same_form(name: str, a: Any, b: Any, found: Verification) -> bool:
    if tuple(a.shape) != tuple(b.shape):
        found.differences.append(Difference(name, "shape", f"{list(a.shape)} in A, {list(b.shape)} in B"))
    elif a.dtype != b.dtype:
        found.differences.append(Difference(name, "dtype", f"{a.dtype} in A, {b.dtype} in B"))
    else:
        return True
    return False


def _add_values(
    found: Verification, name: str, blocks: "Iterable[Tensor]", whole: "Tensor", blocks_are_a: bool, progress: Any
) -> None:
    """Compares a tensor that comes in consecutive blocks of rows with one that is there whole."""
    flat, position, difference = whole.reshape(-1), 0, _Values(tuple(whole.shape))
    for block in blocks:
        for part in block.reshape(-1).split(max(1, _BLOCK_BYTES // block.itemsize)):
            other = flat[position : position + part.numel()]
            if part.numel() == other.numel():
                pair = (part, other) if blocks_are_a else (other, part)
                difference.add(pair[0], pair[1], lambda at, start=position: start + at)
            position += part.numel()
            progress.advance(part.nbytes)
    if position != whole.numel():  # a family's hook gave another shape than the plan has
        found.differences.append(Difference(name, "shape", f"{position} of {whole.numel()} elements"))
    found.num_bytes += whole.nbytes
    found.differences += difference.found(name)


class _Values:
    """The differing elements of one tensor, as far as it has been compared."""

    def __init__(self, shape: "Shape"):
        self._shape = shape
        self._num_different = 0
        self._first: tuple[int, str] | None = None

    def add(self, a: "Tensor", b: "Tensor", flat_index: Any) -> None:
        """Compares two parts of the same shape. `flat_index(i)`: place of the part's element i in the tensor."""
        import torch

        itemsize = a.itemsize
        a, b = (part.contiguous().reshape(-1).view(torch.uint8) for part in (a, b))
        if torch.equal(a, b):
            return
        bytes_a, bytes_b = a.numpy(), b.numpy()
        different = (bytes_a != bytes_b).reshape(-1, itemsize).any(axis=1)
        self._num_different += int(different.sum())
        at = int(different.argmax())
        bits = [part[at * itemsize : (at + 1) * itemsize].tobytes()[::-1].hex() for part in (bytes_a, bytes_b)]
        first = (flat_index(at), f"0x{bits[0]} in A, 0x{bits[1]} in B")
        self._first = min(self._first or first, first)

    def found(self, name: str) -> list[Difference]:
        if self._first is None:
            return []
        at = self._first[0]
        index: list[int] = []
        for size in reversed(self._shape):
            at, last = divmod(at, size)
            index.insert(0, last)
        counts = f"{self._num_different} of {prod(self._shape)} elements"
        return [Difference(name, "values", f"{counts}, first at {index}: {self._first[1]}")]


# A Hugging Face folder and a torch_dist checkpoint


def _compare_forms(sides: list[Any], bridge: "AutoBridge | None", progress: Any) -> Verification:
    from megatron.bridge.models.conversion.plan import Plan

    hf_is_a = isinstance(sides[0], WeightSource)
    source, reader = sides if hf_is_a else reversed(sides)
    weights = _as_hf(source, reader, bridge)
    plan: Plan = weights.plan
    shapes = plan.hf_shapes() | {name: plan.hf_shapes()[same_as] for name, same_as in plan.tied.items()}
    stored = {name: _Form(tuple(shape), weights.dtypes[name]) for name, shape in shapes.items()}
    wanted = {name: info for name, info in source.infos.items() if name in shapes or name not in plan.dropped}
    found = Verification(ignored={name: why for name, why in plan.dropped.items() if name not in wanted})
    in_order: list[Mapping[str, Any]] = [wanted, stored] if hf_is_a else [stored, wanted]
    for name in _common(in_order[0], in_order[1], found):
        forms = (source.infos[name], stored[name]) if hf_is_a else (stored[name], source.infos[name])
        if _same_form(name, forms[0], forms[1], found):
            _add_values(found, name, weights.blocks(name, _BLOCK_BYTES), source.read(name), not hf_is_a, progress)
    _note_padding(weights, reader, found)
    return found


class _Form(NamedTuple):
    shape: "Shape"
    dtype: "torch.dtype"


def _as_hf(source: WeightSource, reader: "TorchDistReader", bridge: "AutoBridge | None") -> "CheckpointWeights":
    from megatron.bridge import runtime

    runtime.enter()
    from megatron.bridge.models.conversion.auto_bridge import AutoBridge
    from megatron.bridge.models.conversion.offline import CheckpointWeights
    from megatron.bridge.training.run_config import read_provider
    from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME, TOKENIZER_FOLDER

    if bridge is None:
        folders = [reader.folder / TOKENIZER_FOLDER, source.folder]
        folder = next((folder for folder in folders if (folder / CONFIG_NAME).is_file()), None)
        if folder is None:
            raise CheckpointError(
                f"{reader.folder}: no {TOKENIZER_FOLDER}/{CONFIG_NAME}, and no {CONFIG_NAME} in {source.folder}: "
                "nothing says how the two correspond; give a bridge"
            )
        bridge = AutoBridge.from_hf_config(load_config(folder))
    has_run_config = (reader.folder / RUN_CONFIG_NAME).is_file()
    provider = read_provider(reader.folder) if has_run_config else bridge.to_megatron_provider(load_weights=False)
    hf_pretrained = PreTrainedCausalLM(source.folder, bridge.hf_pretrained.config)
    return CheckpointWeights(bridge._model_bridge, hf_pretrained, provider, reader.folder)


def _note_padding(weights: "CheckpointWeights", reader: "TorchDistReader", found: Verification) -> None:
    from megatron.bridge.models.conversion.param_mapping import VOCABULARY_WEIGHTS

    for task in weights.plan:
        key, num_rows = task.shards[0].key, next(iter(task.hf_shapes.values()))[0]
        if task.global_param_name in VOCABULARY_WEIGHTS and num_rows < reader.tensors[key].shape[0]:
            num_padding = reader.tensors[key].shape[0] - num_rows
            zero = "zero" if _is_zero(reader, key, num_rows) else "not zero"
            found.ignored[key] = f"{num_padding} row(s) of vocabulary padding, {zero}"


def _is_zero(reader: "TorchDistReader", key: str, first_row: int) -> bool:
    """Whether every bit of the rows from `first_row` on is zero."""
    import torch

    shape = reader.tensors[key].shape
    box = ((first_row, shape[0]), *((0, size) for size in shape[1:]))
    blocks = _row_blocks(box, reader.tensors[key].dtype.itemsize)
    parts = (part for block in blocks for _, part in reader.parts(key, block))
    return not any(part.contiguous().reshape(-1).view(torch.uint8).any() for part in parts)


# Two torch_dist checkpoints


def _compare_stored(a: "TorchDistReader", b: "TorchDistReader", progress: Any) -> Verification:
    from megatron.bridge.models.conversion.offline import is_weight
    from megatron.bridge.models.conversion.param_mapping import VOCABULARY_WEIGHTS

    found = Verification()
    tensors = [{key: tensor for key, tensor in side.tensors.items() if is_weight(key)} for side in (a, b)]
    for key in _common(tensors[0], tensors[1], found):
        one, other = tensors[0][key], tensors[1][key]
        if key in VOCABULARY_WEIGHTS and one.shape[1:] == other.shape[1:] and one.shape != other.shape:
            num_rows = min(one.shape[0], other.shape[0])
            longer = a if one.shape[0] > num_rows else b
            if _is_zero(longer, key, num_rows):
                found.ignored[key] = f"rows from {num_rows} on, which only one has, and which are zero"
                one = _Form((num_rows, *one.shape[1:]), one.dtype)  # type: ignore[assignment]
                other = _Form(one.shape, other.dtype)  # type: ignore[assignment]
        if _same_form(key, one, other, found):
            found.differences += _compare_chunks(a, b, key, one.shape, progress).found(key)
            found.num_bytes += prod(one.shape) * one.dtype.itemsize
    return found


def _compare_chunks(a: "TorchDistReader", b: "TorchDistReader", key: str, shape: "Shape", progress: Any) -> _Values:
    """Compares a tensor chunk by chunk of A, with whatever chunks B has there; rows beyond `shape` are left out."""
    from megatron.bridge.transport.boxes import common_box, shifted, slices, whole

    tensor, values, num_compared = a.tensors[key], _Values(shape), 0
    for chunk in tensor.chunks:
        box = tuple((start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        inside = common_box(box, whole(shape))
        for block in _row_blocks(inside, tensor.dtype.itemsize) if inside is not None else ():
            part = a.read(key, block)
            for other_box, other in b.parts(key, block):
                values.add(part[slices(shifted(other_box, block))], other, _Positions(other_box, shape))
            num_compared += part.numel()
            progress.advance(part.nbytes)
    if num_compared != prod(shape):
        raise CheckpointError(f"{a.folder / '.metadata'}: the chunks of {key} do not cover it: it is damaged")
    return values


class _Positions:
    """From the index of an element in a box to its index in the tensor, both flat."""

    def __init__(self, box: "Box", shape: "Shape"):
        self._box, self._shape = box, shape

    def __call__(self, at: int) -> int:
        index = 0
        strides = [prod(self._shape[axis + 1 :]) for axis in range(len(self._shape))]
        for (start, stop), stride in zip(reversed(self._box), reversed(strides), strict=True):
            at, offset = divmod(at, stop - start)
            index += (start + offset) * stride
        return index


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
