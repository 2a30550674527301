"""Offline conversion between an HF folder and a torch_dist checkpoint, without ever holding the model.

The model is built on the meta device only to learn the placement of its weights. Tensors then stream from file to file:
a weight that both sides store alike goes straight from the source's memory map to the target file; any other is put
together in blocks of bounded size.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.bridge.errors import PlanError
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion import quantized_export
from megatron.bridge.models.conversion.export_report import ExportReport, compare_with_source
from megatron.bridge.models.conversion.exported_config import ExportedConfig, source_tensors
from megatron.bridge.models.conversion.hf_files import (
    TensorBlocks,
    hf_tensor_infos,
    main_dtype,
    needed_tensor_infos,
    output_shards,
    weight_files,
    write_shared,
)
from megatron.bridge.models.conversion.hooks import BridgeHooks, WeightHooks
from megatron.bridge.models.conversion.layout import Layout, Piece
from megatron.bridge.models.conversion.meta_model import meta_placement
from megatron.bridge.models.conversion.param_mapping import padded_axis
from megatron.bridge.models.conversion.plan import Plan, WeightConversionTask, build_plan
from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.conversion.sanity import check_weights
from megatron.bridge.models.conversion.weight_stream import check_tied, read_hf_tensors
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.number_range import check_range
from megatron.bridge.models.hf_pretrained.safetensors_format import write_index
from megatron.bridge.models.hf_pretrained.source import WeightSource
from megatron.bridge.models.model_provider import Provider
from megatron.bridge.models.placement import Shard
from megatron.bridge.models.run_config import provider_as_data, write_run_config
from megatron.bridge.models.stored_places import StoredPlaces
from megatron.bridge.transport import torch_dist
from megatron.bridge.transport.boxes import Box, common_box
from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER, TRACKER_NAME
from megatron.bridge.transport.progress import Progress
from megatron.bridge.transport.staging import OutputFile, StagingFolder

# The beginnings of checkpoint keys that do not belong to weights of the model.
_NOT_WEIGHTS = ("optimizer", "chained_", "rng_state", "rerun_state", "opt_param_scheduler", "common")
_ITERATION = "iter_0000000"


# Import


def import_checkpoint(
    bridge: "WeightHooks",
    hf_pretrained: "HFModel",
    provider: "Provider",
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    resources: Resources | None = None,
    show_progress: bool = False,
    force: bool = False,
) -> Plan:
    """Writes an HF checkpoint as `out/iter_0000000`, with `run_config.yaml`, tokenizer and tracker file.

    The folder appears when it is complete. After a crash, the same call writes what is missing.

    Args:
        bridge: a bridge with `hf_config` set.
        dtype: convert floating-point weights to this dtype; default: each keeps the one it is stored in.
        force: convert even numbers that do not look like weights, or that become Inf in `dtype`.

    Raises:
        PlanError: the checkpoint and the model do not match; nothing is written.
        QuantizationError: numbers that do not look like weights; nothing is written.
        CheckpointError: `out` already holds something, or numbers are outside of the range of `dtype`.
    """
    resources = resources or Resources()
    infos, name = needed_tensor_infos(hf_pretrained), hf_pretrained.model_name_or_path
    parameters, config, objects = meta_placement(provider, name, len(infos))
    plan = build_plan(parameters, bridge.registry(hf_pretrained), config, infos, model_name=name)
    check_tied(plan, hf_pretrained.state)
    state = hf_pretrained.state
    if not force:
        check_weights(plan, partial(read_hf_tensors, bridge, state=state), name)
    with Progress("importing", None, enabled=show_progress) as progress:
        entries = list(_entries(bridge, plan, state, dtype, resources.block_bytes, progress, force))
        groups = torch_dist.group_entries(entries, _file_bytes(sum(entry.nbytes for entry in entries)))
        content = [[[e.key, e.global_shape, e.global_offset, e.shape, str(e.dtype)] for e in group] for group in groups]
        fingerprint = ["import", state.files.fingerprint(), provider_as_data(provider), content]
        staging = StagingFolder(out, fingerprint, [state.files])
        folder = staging.path / _ITERATION
        filenames = [f"__0_{index}.distcp" for index in range(len(groups) + 1)]
        writers = [partial(torch_dist.write_entries, group) for group in groups]
        writers.append(partial(torch_dist.write_objects, objects))
        files = [OutputFile(f"{_ITERATION}/{file}", write) for file, write in zip(filenames, writers, strict=True)]

        def finish(contents: list[dict[str, Any]]) -> None:
            torch_dist.write_metadata(folder, entries, dict(zip(filenames, contents, strict=True)))
            write_run_config(folder, provider, name)
            hf_pretrained.save_artifacts(folder / TOKENIZER_FOLDER)
            (staging.path / TRACKER_NAME).write_text("0")

        write_shared(staging, files, resources, finish)
    return plan


def _entries(
    bridge: "WeightHooks",
    plan: Plan,
    state: "WeightSource",
    dtype: torch.dtype | None,
    block_bytes: int,
    progress: Progress,
    force: bool,
) -> Iterator[torch_dist.Entry]:
    for task in plan:
        name = next(iter(task.hf_shapes))
        stored = state.infos[name].dtype
        if bridge.changes_loaded_weights and not (stored.is_floating_point and stored.itemsize > 1):
            assert task.dtype is not None
            stored = task.dtype  # the family's hook turns these numbers into weights
        target = task.converted_dtype(stored, dtype)
        is_stored = state.infos[name].dtype == target and state.is_stored(name)
        for shard in task.shards:
            for box in _blocks(task.layout, shard.box, target.itemsize, block_bytes, is_stored):
                num_stacked = len(shard.global_shape) - len(box)
                yield torch_dist.Entry(
                    key=shard.key,
                    global_shape=shard.global_shape,
                    global_offset=(*shard.global_offset[:num_stacked], *(start for start, _ in box)),
                    shape=(1,) * num_stacked + tuple(stop - start for start, stop in box),
                    dtype=target,
                    produce=partial(_produce, bridge, task, box, state, target, progress, force),
                )


def _blocks(layout: Layout, box: Box, itemsize: int, block_bytes: int, is_stored: bool) -> Iterator[Box]:
    """A shard's box, cut into blocks of rows if its data must be put together and is larger than a block."""
    pieces = [piece for piece in layout.pieces if common_box(piece.megatron_box, box)]
    is_view = is_stored and len(pieces) == 1 and pieces[0].role is not None and not pieces[0].permute
    if not box:
        yield box
        return
    (start, stop), tail = box[0], box[1:]
    row_bytes = prod(last - first for first, last in tail) * itemsize
    num_rows = stop - start if is_view else max(1, block_bytes // max(row_bytes, 1))
    for first in range(start, stop, num_rows):
        yield ((first, min(first + num_rows, stop)), *tail)


def _produce(
    bridge: "WeightHooks",
    task: WeightConversionTask,
    box: Box,
    state: "WeightSource",
    dtype: torch.dtype,
    progress: Progress,
    force: bool,
) -> "Tensor":
    """The part of a Megatron weight in `box`."""
    hf_tensors = read_hf_tensors(bridge, task, state)
    parts = [part for piece in task.layout.pieces if (part := layouts.clip(piece, box)) is not None]
    if len(parts) == 1 and parts[0].role is not None and not parts[0].offset:
        source = layouts.take(hf_tensors[parts[0].role], parts[0])
        data = source.to(dtype).contiguous()
        if not force:
            check_range(data, source, task.mapping.hf_names[parts[0].role])
    else:
        data = torch.empty([stop - start for start, stop in box], dtype=dtype)
        layouts.assemble(task.layout, hf_tensors, data, box, None if force else task.mapping.hf_names)
    progress.advance(data.nbytes)
    return data


# Export


def export_checkpoint(
    bridge: "BridgeHooks",
    hf_pretrained: "HFModel",
    provider: "Provider",
    folder: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    exported: ExportedConfig,
    strict: bool | None = None,
    resources: Resources | None = None,
    show_progress: bool = False,
    quantization: str | None = None,
) -> ExportReport:
    """Writes a torch_dist checkpoint, saved from any parallel layout, as an HF folder.

    The folder appears when it is complete. After a crash, the same call writes what is missing.

    Args:
        hf_pretrained: the source of the config and the tokenizer and, if it has weights, of their files and order.
        folder: the folder of the iteration.
        dtype: convert floating-point weights to this dtype; default: each keeps the one it is stored in.
        exported: the config of the export.
        strict: see `compare_with_source`.
        quantization: the form to quantise weights in (see `quantized_export.quantizer_of`).

    Raises:
        QuantizationError: an unknown form, or one in which a changed weight cannot be written.
        PlanError: the export differs from the source in a way that `strict` refuses; nothing is written.
        CheckpointError: the checkpoint is damaged, `out` already holds something, or numbers are outside of the range
            of `dtype`.
    """
    resources = resources or Resources()
    weights = CheckpointWeights(bridge, hf_pretrained, provider, folder, dtype)
    source = source_tensors(bridge, hf_pretrained)
    report = compare_with_source(weights.plan, source, exported.changes, strict, str(out))
    main = main_dtype(weights.plan.hf_shapes(), weights.dtypes)
    shards, options = output_shards(weights.plan.hf_shapes(), weights.dtypes, weights.plan.tied, hf_pretrained)
    metadata = options.get("file_metadata", {})
    tensors: TensorBlocks = weights
    quantization_config = None
    if quantization is not None:
        quantizer = quantized_export.quantizer_of(quantization, hf_pretrained)
        chosen = quantized_export.weights_to_quantize(weights.plan, quantizer)
        shards = quantized_export.quantized_shards(shards, quantizer, chosen)
        tensors = quantized_export.QuantizedBlocks(weights, quantizer, chosen)
        quantization_config = quantizer.config(quantized_export.not_converted(weights.plan.hf_shapes(), chosen))
    sources = [weights.files] if hf_tensor_infos(hf_pretrained) is None else [weights.files, hf_pretrained.state.files]
    content = {name: [[info.name, info.shape, str(info.dtype)] for info in infos] for name, infos in shards.items()}
    fingerprint = ["export", quantization, [files.fingerprint() for files in sources], content, options]
    fingerprint += [repr(exported.changes), str(main)]
    staging = StagingFolder(out, fingerprint, sources)
    with Progress("exporting", None, enabled=show_progress) as progress:
        files = weight_files(tensors, shards, metadata, resources.block_bytes, progress)

        def finish(contents: list[dict[str, object]]) -> None:
            write_index(staging.path, shards, options.get("index_metadata"))
            hf_pretrained.save_artifacts(staging.path, quantization_config, exported.config, main)

        write_shared(staging, files, resources, finish)
    return report


class CheckpointWeights:
    """The HF tensors in a torch_dist checkpoint, each of which can be read in blocks of rows.

    Args:
        hf_pretrained: the source of the config; if it has weights, the second copies of tied tensors that it has are
            included.
        folder: the folder of the iteration.
        dtype: convert floating-point weights to this dtype.

    Attributes:
        plan: the plan of the whole model.
        dtypes: the dtype of each HF tensor.
        files: the files of the checkpoint.

    Raises:
        PlanError: the checkpoint does not hold exactly the weights of its model.
    """

    def __init__(
        self,
        bridge: "WeightHooks",
        hf_pretrained: "HFModel",
        provider: "Provider",
        folder: Path,
        dtype: torch.dtype | None = None,
    ):
        self._bridge, self._hf_pretrained = bridge, hf_pretrained
        self._reader = torch_dist.TorchDistReader(folder)
        self.files = self._reader.files
        num_chunks = sum(len(tensor.chunks) for tensor in self._reader.tensors.values())
        parameters, config, _ = meta_placement(provider, str(folder), num_chunks)
        places = StoredPlaces(self._reader.tensors, config)
        parameters = [places.located(parameter) for parameter in parameters]
        registry = bridge.registry(hf_pretrained)
        self.plan = build_plan(parameters, registry, config, None, model_name=str(folder))
        _check_tensors(self._reader, self.plan, config, folder)
        infos = hf_tensor_infos(hf_pretrained) or {}
        self.plan.dropped = {name: reason for name in infos if (reason := registry.drop_reason(name))}
        self.plan.tied = {name: same_as for name, same_as in registry.tied().items() if name in infos}
        self._sources: dict[str, list[tuple[WeightConversionTask, Piece]]] = defaultdict(list)
        self.dtypes: dict[str, torch.dtype] = {}
        for task in self.plan:
            stored = self._reader.tensors[task.shards[0].key].dtype
            names = task.mapping.hf_names
            for piece in task.layout.pieces:
                if piece.role is not None:
                    self._sources[names[piece.role]].append((task, piece))
                    self.dtypes[names[piece.role]] = task.converted_dtype(stored, dtype)
        for name, same_as in self.plan.tied.items():
            self.dtypes[name] = self.dtypes[same_as]

    def blocks(self, name: str, block_bytes: int) -> Iterator["Tensor"]:
        """An HF tensor in consecutive blocks of rows; if the checkpoint stores it alike, one block that is a view."""
        name = self.plan.tied.get(name, name)
        sources = self._sources[name]
        shape = self._shape(name)
        dtype = self.dtypes[name]
        if self._bridge.changes_exported_weights:
            task = sources[-1][0]
            whole = {other: self._rows(other, 0, _num_rows(shape)) for other, shape in task.hf_shapes.items()}
            state = getattr(self._hf_pretrained, "state", None)
            weight = self._bridge.maybe_modify_converted_hf_weight(task, whole, state)[name]
            converted = weight.to(dtype)
            check_range(converted, weight, name)
            yield converted
            return
        view = self._stored_alike(sources, shape, dtype)
        if view is not None:
            yield view
            return
        num_rows = max(1, block_bytes // max(prod(shape[1:]) * dtype.itemsize, 1))
        for start in range(0, _num_rows(shape), num_rows):
            yield self._rows(name, start, min(start + num_rows, _num_rows(shape)))

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._sources[name][0][0].hf_shapes[name]

    def _stored_alike(
        self, sources: list[tuple[WeightConversionTask, Piece]], shape: tuple[int, ...], dtype: torch.dtype
    ) -> "Tensor | None":
        """The tensor as a view of the checkpoint, if it is one contiguous piece of one chunk in it."""
        task, piece = sources[0]
        if len(sources) > 1 or piece.permute or piece.offset or piece.num_elements != prod(shape):
            return None
        parts = [part for shard in task.shards for part in self._read(shard, piece.megatron_box)]
        if len(parts) != 1 or parts[0][1].dtype != dtype or not parts[0][1].is_contiguous():
            return None
        return parts[0][1].view(shape)

    def _rows(self, name: str, start: int, stop: int) -> "Tensor":
        shape = self._shape(name)
        out = torch.empty((stop - start, *shape[1:]) if shape else (), dtype=self.dtypes[name])
        for task, piece in self._sources[name]:
            piece_in_rows = layouts.clip_hf_rows(piece, start, stop)
            if piece_in_rows is None:
                continue
            for shard in task.shards:
                for box, part in self._read(shard, piece_in_rows.megatron_box):
                    target = layouts.clip(piece_in_rows, box)
                    assert target is not None
                    view = layouts.take(out, layouts.shift_hf_rows(target, start))
                    numbers = layouts.plus(part, -target.offset)
                    view.copy_(numbers)
                    check_range(view, numbers, name)
        return out

    def _read(self, shard: Shard, box: Box) -> list[tuple[Box, "Tensor"]]:
        """The stored parts of a shard inside a box of the whole weight, without stacked axes, with their boxes."""
        common = common_box(shard.box, box)
        if common is None:
            return []
        num_stacked = len(shard.global_shape) - len(common)
        stacked = tuple((start, start + 1) for start in shard.global_offset[:num_stacked])
        return [
            (part_box[num_stacked:], part.squeeze(tuple(range(num_stacked))))
            for part_box, part in self._reader.parts(shard.key, (*stacked, *common))
        ]


def _num_rows(shape: tuple[int, ...]) -> int:
    """A scalar is one row."""
    return shape[0] if shape else 1


def _check_tensors(reader: torch_dist.TorchDistReader, plan: Plan, config: "Provider", folder: Path) -> None:
    problems = []
    expected = {shard.key: (task, shard.global_shape) for task in plan for shard in task.shards}
    for key, (task, shape) in sorted(expected.items()):
        if key not in reader.tensors:
            problems.append(f"Megatron weight {key}: missing in the checkpoint")
            continue
        stored = reader.tensors[key].shape
        axis = padded_axis(task.global_param_name, config)
        if axis is not None:  # how much is added depends on the tensor-parallel size with which it was saved
            axis += len(shape) - len(task.shards[0].box)
            stored, shape = (size[:axis] + size[axis + 1 :] for size in (stored, shape))
        if stored != shape:
            problems.append(f"Megatron weight {key}: expected {list(shape)}, found {list(stored)} in the checkpoint")
    for key in sorted(reader.tensors.keys() - expected.keys()):
        if is_weight(key):
            problems.append(f"Megatron weight {key}: in the checkpoint, but not in the model of run_config.yaml")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PlanError(f"{folder}: the checkpoint and its model do not match, nothing was converted:\n{lines}")


def is_weight(key: str) -> bool:
    """Whether a checkpoint's tensor belongs to the model, and not to the optimizer or the like.

    Example: `is_weight("decoder.final_layernorm.weight"), is_weight("optimizer.state.exp_avg")` is `(True, False)`.
    """
    return not key.startswith(_NOT_WEIGHTS) and "_extra_state" not in key


# Shared


def _file_bytes(total: int) -> int:
    """The size of an output file: small enough to write and resume in parts, large enough to keep files few."""
    return min(max(total // 16, 64 * 2**20), 2 * 2**30)
