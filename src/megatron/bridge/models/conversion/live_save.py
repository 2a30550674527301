"""Writing a live, perhaps sharded, model as the weight files of an HF folder."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion import quantized_export, weight_stream
from megatron.bridge.models.conversion.export_report import ExportReport, compare_with_source
from megatron.bridge.models.conversion.exported_config import ExportedConfig, source_tensors
from megatron.bridge.models.conversion.hf_files import FolderMetadata, main_dtype, output_shards
from megatron.bridge.models.conversion.hooks import BridgeHooks, Model
from megatron.bridge.models.conversion.mapping_registry import copies_by_original
from megatron.bridge.models.conversion.plan import Plan, WeightConversionTask
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.range_writer import RangeWriter
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo, write_index
from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter
from megatron.bridge.transport import process_groups
from megatron.bridge.transport.boxes import shifted, slices


class Written(NamedTuple):
    """What an export wrote.

    Attributes:
        report: how it differs from the source.
        dtype: the dtype of most of the weights, before they were quantised; `None` if there are no floating-point ones.
        quantization_config: `None` for plain weights.
    """

    report: ExportReport
    dtype: "torch.dtype | None"
    quantization_config: dict[str, object] | None


def save(
    bridge: "BridgeHooks",
    hf_pretrained: "HFModel",
    model: "Model",
    out: Path,
    *,
    show_progress: bool = False,
    exported: ExportedConfig,
    strict: bool | None = None,
    distributed_save: bool = False,
    weight_dtype: "torch.dtype | None" = None,
    quantization: str | None = None,
) -> Written:
    """Writes the weight files (collective).

    Args:
        bridge: a bridge of the exported config.
        exported: the config of the export.
        strict: see `compare_with_source`.
        distributed_save: every rank writes the byte ranges of what it holds, and nothing is gathered. Otherwise rank 0
            writes each tensor as it is gathered.
        quantization: the form to quantise weights in (see `quantized_export.quantizer_of`).

    Raises:
        QuantizationError: an unknown form, or one in which a changed weight cannot be written.
        PlanError: the export differs from the source in a way that `strict` refuses; nothing is written.
    """
    plan = Plan(weight_stream.build_global_tasks(bridge, hf_pretrained, model))
    if (source := source_tensors(bridge, hf_pretrained)) is not None:
        plan.tied = {name: same for name, same in bridge.registry(hf_pretrained).tied().items() if name in source[0]}
    report = compare_with_source(plan, source, exported.changes, strict, str(out))
    dtypes = {info.name: info.dtype for info in weight_stream.describe(plan.tasks, weight_dtype)}
    shards, options = output_shards(plan.hf_shapes(), dtypes, plan.tied, hf_pretrained)
    further: dict[str, Tensor] = {}
    written = Written(report, main_dtype(plan.hf_shapes(), dtypes), None)
    if quantization is not None:
        quantizer = quantized_export.quantizer_of(quantization, hf_pretrained)
        chosen = quantized_export.weights_to_quantize(plan, quantizer)
        config = quantizer.config(quantized_export.not_converted(plan.hf_shapes(), chosen))
        written = written._replace(quantization_config=config)
        shards, further = quantized_export.quantized_shards(shards, quantizer, chosen), quantizer.further()
    elif distributed_save and not bridge.changes_exported_weights:
        _save_ranges(plan, out, shards, options)
        return written
    is_writer = process_groups.rank() == 0
    with SafetensorsWriter(out, shards, **options) if is_writer else nullcontext() as writer:
        for name, tensor in weight_stream.export(
            bridge,
            hf_pretrained,
            model,
            cpu=is_writer,
            show_progress=show_progress,
            conversion_tasks=plan.tasks,
            weight_dtype=weight_dtype,
            quantization=quantization,
        ):
            if writer is not None:
                writer.write(name, tensor)
        if writer is not None:
            for name, tensor in further.items():
                writer.write(name, tensor)
    process_groups.barrier()
    return written


def _save_ranges(plan: Plan, out: Path, shards: "dict[str, list[TensorInfo]]", options: FolderMetadata) -> None:
    """Each box of each weight is written by the rank that owns it. Ranks wait for each other, but exchange nothing."""
    is_first = process_groups.rank() == 0
    writer = RangeWriter(out, shards, options.get("file_metadata"))
    if is_first:
        writer.create()
    process_groups.barrier()
    copies = copies_by_original(plan.tied)
    with writer:
        for task in plan:
            _write_owned_boxes(task, writer, copies)
    process_groups.barrier()
    if is_first:
        writer.publish()
        write_index(out, shards, options.get("index_metadata"))
    process_groups.barrier()


def _write_owned_boxes(task: WeightConversionTask, writer: RangeWriter, copies: dict[str, list[str]]) -> None:
    names = task.mapping.hf_names
    for shard in task.shards:
        if task.owners[shard.box] != process_groups.rank():
            continue
        assert task.param_weight is not None
        part = task.param_weight.detach()[slices(shard.local_box)]
        for piece in task.layout.pieces:
            common = layouts.clip(piece, shard.box)
            if common is None or common.role is None:
                continue
            box = layouts.plus(part[slices(shifted(common.megatron_box, shard.box))], -common.offset)
            if common.permute:
                box = box.permute([common.permute.index(axis) for axis in range(box.dim())])
            name = names[common.role]
            for target in (name, *copies.get(name, ())):
                writer.write_box(target, common.hf_index, box)
