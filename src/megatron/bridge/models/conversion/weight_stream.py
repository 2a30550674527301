"""Weights between a live model and HF tensors: sharded loading without communication, and streaming export."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

import torch
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron.bridge.errors import PlanError
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.hf_files import hf_tensor_infos, needed_tensor_infos
from megatron.bridge.models.conversion.hooks import Model, WeightHooks
from megatron.bridge.models.conversion.layout import Layout, Sliceable
from megatron.bridge.models.conversion.mapping_registry import copies_by_original
from megatron.bridge.models.conversion.plan import Plan, WeightConversionTask, build_plan
from megatron.bridge.models.conversion.quantized_export import quantized, quantizer_of, weights_to_quantize
from megatron.bridge.models.conversion.sanity import check_weights
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.number_range import check_range
from megatron.bridge.models.hf_pretrained.source import WeightSource
from megatron.bridge.models.model_building import unwrap_model
from megatron.bridge.models.placement import Parameter, read_placement
from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.transport import collectives
from megatron.bridge.transport.boxes import Box, Shape, shifted, slices
from megatron.bridge.transport.progress import Progress

# The bytes of Megatron weights that one round of collectives moves, by default.
BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LoadReport:
    """What a load did on this rank.

    Attributes:
        plan: what was loaded, and what was left out.
        bytes_read: how many bytes of the checkpoint were read.
        bytes_written: how many bytes the rank's own weights have.
        not_read: the config fields that the family does not know, and that transformers does not read, with their
            values.
    """

    plan: Plan
    bytes_read: int
    bytes_written: int
    not_read: Mapping[str, object]


class HFWeightInfo(NamedTuple):
    """One HF tensor that an export will give, without its data."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


class HFWeightTuple(NamedTuple):
    """One exported HF tensor."""

    param_name: str
    weight: "Tensor"


def load(
    bridge: "WeightHooks",
    hf_pretrained: "HFModel",
    model: "Model",
    allowed_mismatched_params: Iterable[str] = (),
    show_progress: bool = False,
    force: bool = False,
) -> LoadReport:
    """Fills a live model from an HF checkpoint. Each rank reads the slices that it holds; no collective is called.

    Args:
        bridge: a bridge with `hf_config` set.
        hf_pretrained: the checkpoint.
        allowed_mismatched_params: the names of Megatron parameters that may keep their values.
        force: load even numbers that do not look like weights, or that become Inf in the dtype of the model.

    Raises:
        PlanError: the model and the checkpoint do not match; no weight was changed.
        QuantizationError: numbers that do not look like weights; no weight was changed.
    """
    chunks = unwrap_model(model)
    infos = needed_tensor_infos(hf_pretrained)
    parameters = _read_parameters(chunks)
    plan = build_plan(
        parameters,
        bridge.registry(hf_pretrained),
        _config(chunks),
        infos,
        model_name=_name(hf_pretrained),
        allowed_mismatched_params=allowed_mismatched_params,
    )
    state = hf_pretrained.state
    check_tied(plan, state)
    if not force:
        check_weights(plan, lambda task: read_hf_tensors(bridge, task, state), _name(hf_pretrained))
    num_read, num_written = 0.0, 0
    with torch.no_grad(), Progress("loading", len(plan), enabled=show_progress) as progress:
        for task in plan:
            hf_tensors = read_hf_tensors(bridge, task, state)
            assert task.param_weight is not None
            for shard in task.shards:
                part = task.param_weight.detach()[slices(shard.local_box)]
                layouts.assemble(task.layout, hf_tensors, part, shard.box, None if force else task.mapping.hf_names)
                num_read += _bytes_read(task.layout, hf_tensors, shard.box)
            num_written += task.param_weight.nbytes
            progress.advance(task.param_weight.nbytes)
    return LoadReport(plan, round(num_read), num_written, bridge.unread_fields(hf_pretrained.config))


def _bytes_read(layout: Layout, hf_tensors: Mapping[str, Sliceable], box: Box) -> float:
    parts = [part for piece in layout.pieces if (part := layouts.clip(piece, box)) is not None]
    return sum(part.num_elements * hf_tensors[part.role].itemsize for part in parts if part.role is not None)


def read_hf_tensors(
    bridge: "WeightHooks", task: WeightConversionTask, state: "WeightSource"
) -> Mapping[str, Sliceable]:
    """A task's HF tensors by role: views of the file, or what computes slices of quantised tensors.

    If the family overrides `maybe_modify_loaded_hf_weight`, its result.

    Raises:
        PlanError: a tensor that the hook returned does not have the shape that the layout needs.
    """
    if not bridge.changes_loaded_weights:
        return {role: state.view(name) for role, name in task.mapping.hf_names.items()}
    changed = bridge.maybe_modify_loaded_hf_weight(task.mapping.hf_param, state)
    hf_tensors = {"weight": changed} if isinstance(changed, torch.Tensor) else changed
    for role, shape in task.layout.hf_shapes.items():
        if tuple(hf_tensors[role].shape) != tuple(shape):
            raise PlanError(
                f"HF tensor {task.mapping.hf_names[role]}: expected {list(shape)} for {task.global_param_name}, "
                f"found {list(hf_tensors[role].shape)} after maybe_modify_loaded_hf_weight"
            )
    return hf_tensors


def check_tied(plan: Plan, state: "WeightSource") -> None:
    """Raises `PlanError` if the two copies of a tensor that is stored twice differ."""
    for name, same_as in plan.tied.items():
        if not torch.equal(state[name], state[same_as]):
            raise PlanError(
                f"{state.folder}: HF tensor {name}: the config ties it to {same_as}, but they hold different values; "
                "set tie_word_embeddings to false in config.json if both are meant"
            )


def build_global_tasks(
    bridge: "WeightHooks", hf_pretrained: "HFModel", model: "Model", weight_dtype: torch.dtype | None = None
) -> list[WeightConversionTask]:
    """Tasks for every weight of the whole model, in the same order on every rank (collective).

    Args:
        weight_dtype: the dtype in which these tasks are exported.

    Raises:
        PlanError: a weight without a mapping.
    """
    chunks = unwrap_model(model)
    local = {parameter.name: parameter for parameter in _read_parameters(chunks)}
    records = [
        (p.name, p.param_name, p.shape, p.dtype, p.vp_stage, tuple(shard.box for shard in p.shards))
        for p in local.values()
    ]
    pp_rank = parallel_state.get_pipeline_model_parallel_rank() if parallel_state.model_parallel_is_initialized() else 0
    merged: dict[str, Parameter] = {}
    pp_ranks: dict[str, int] = {}
    owners: dict[str, dict[Box, int]] = {}
    for rank, (rank_pp, rank_records) in enumerate(collectives.all_gather_object((pp_rank, records))):
        for name, _, shape, dtype, vp_stage, boxes in rank_records:
            if name not in merged:
                placeholder = Parameter(name, name, shape, dtype, None, vp_stage)
                merged[name] = local.get(name, placeholder)
                pp_ranks[name] = rank_pp
            for box in boxes:
                owners.setdefault(name, {}).setdefault(box, rank)
    plan = build_plan(
        merged.values(), bridge.registry(hf_pretrained), _config(chunks), None, model_name=_name(hf_pretrained)
    )
    modules = [dict(chunk.named_modules()) for chunk in chunks]
    for task in plan:
        task.pp_rank = pp_ranks[task.global_param_name]
        task.owners = owners[task.global_param_name]
        task.weight_dtype = weight_dtype
        if task.param_weight is not None:
            assert task.vp_stage is not None
            task.megatron_module = modules[task.vp_stage].get(task.param_name.rpartition(".")[0])
    return plan.tasks


def export(
    bridge: "WeightHooks",
    hf_pretrained: "HFModel",
    model: "Model",
    *,
    cpu: bool = False,
    show_progress: bool = False,
    conversion_tasks: Iterable[WeightConversionTask | None] | None = None,
    weight_dtype: torch.dtype | None = None,
    select: Callable[[str], bool] | None = None,
    bucket_bytes: int = BUCKET_BYTES,
    quantization: str | None = None,
) -> Iterator[HFWeightTuple]:
    """Yields every HF tensor, whole, on every rank (collective, lazy; iterate to the end on all ranks together).

    A tensor may be a view of the model's own weight: copy it before you change it or the model.

    Args:
        cpu: yield CPU tensors.
        conversion_tasks: export only these. They are iterated once, and `param_weight` is read only when it is used.
        weight_dtype: convert floating-point tensors to this dtype.
        select: export only the HF tensors whose names it accepts; the others are not moved.
        bucket_bytes: the bytes of Megatron weights that are gathered at a time.
        quantization: the form to quantise weights in (see `quantized_export.quantizer_of`).

    Raises:
        PlanError: at the end, if the tasks made only part of an HF tensor.
    """
    tasks = build_global_tasks(bridge, hf_pretrained, model) if conversion_tasks is None else conversion_tasks
    form = None if quantization is None else quantizer_of(quantization, hf_pretrained)
    state = hf_pretrained.state if hf_tensor_infos(hf_pretrained) is not None else None
    tied = bridge.registry(hf_pretrained).tied()
    stored = {name: same_as for name, same_as in tied.items() if state is not None and name in state}
    copies = copies_by_original(stored)
    assembler = _Assembler()
    selected = (task for task in tasks if task is not None and _is_selected(task, copies, select))
    with torch.no_grad(), Progress("exporting", None, enabled=show_progress) as progress:
        for bucket in _buckets(selected, bucket_bytes):
            for task, parts in zip(bucket, collectives.gather_parts(bucket), strict=True):
                finished = assembler.add(task, parts)
                if not finished:
                    continue
                weights = bridge.maybe_modify_converted_hf_weight(task, finished, state)
                if form is not None:
                    weights = quantized(weights, form, weights_to_quantize([task], form))
                for name, weight in weights.items():
                    wanted = None if form is not None else weight_dtype or task.weight_dtype
                    weight = _convert(name, weight, cpu, task.converted_dtype(weight.dtype, wanted))
                    progress.advance(weight.nbytes)
                    for hf_name in (name, *copies.get(name, ())):
                        if select is None or select(hf_name):
                            yield HFWeightTuple(hf_name, weight)
    assembler.check_complete()


def describe(
    tasks: Iterable[WeightConversionTask | None], weight_dtype: torch.dtype | None = None
) -> list[HFWeightInfo]:
    """Name, shape and dtype of every HF tensor that an export of `tasks` yields, without moving any data.

    Second copies of tied tensors, which depend on the source, are not included, nor are changes by a family's hook.
    """
    infos: dict[str, HFWeightInfo] = {}
    for task in tasks:
        for name, shape in task.hf_shapes.items() if task is not None else ():
            assert task is not None and task.dtype is not None
            dtype = task.converted_dtype(task.dtype, weight_dtype or task.weight_dtype)
            infos.setdefault(name, HFWeightInfo(name, shape, dtype))
    return list(infos.values())


def _is_selected(
    task: WeightConversionTask, copies: Mapping[str, Sequence[str]], select: Callable[[str], bool] | None
) -> bool:
    names = task.mapping.hf_names.values()
    return select is None or any(select(hf_name) for name in names for hf_name in (name, *copies.get(name, ())))


class _Assembler:
    """Puts parts of Megatron weights together into HF tensors, some of which are made by several tasks."""

    def __init__(self) -> None:
        self._pending: dict[str, Tensor] = {}
        self._missing: dict[str, int] = {}

    def add(self, task: WeightConversionTask, parts: Sequence[tuple[Box, "Tensor"]]) -> dict[str, "Tensor"]:
        """Takes in the boxes of one weight; returns the HF tensors that are now complete."""
        names = task.mapping.hf_names
        finished = _views(task, parts)
        if finished is not None:
            return finished
        for role, shape in task.layout.hf_shapes.items():
            name = names[role]
            if name not in self._pending:
                self._pending[name] = parts[0][1].new_empty(shape)
                self._missing[name] = prod(shape)
        by_role = {role: self._pending[name] for role, name in names.items()}
        for box, part in parts:
            for role, count in layouts.disassemble(task.layout, part, box, by_role).items():
                self._missing[names[role]] -= count
        complete = [name for name in names.values() if self._missing[name] == 0]
        for name in complete:
            del self._missing[name]
        return {name: self._pending.pop(name) for name in complete}

    def check_complete(self) -> None:
        if self._missing:
            names = ", ".join(f"{name} ({count} elements missing)" for name, count in self._missing.items())
            raise PlanError(f"export: incomplete HF tensors: {names}; export all tasks that share a group_key together")


def _views(task: WeightConversionTask, parts: Sequence[tuple[Box, "Tensor"]]) -> dict[str, "Tensor"] | None:
    """The HF tensors as views, if each is one piece of one part, so that nothing need be copied."""
    if sum(piece.role is not None for piece in task.layout.pieces) != len(task.layout.hf_shapes):
        return None
    views = {}
    for piece in task.layout.pieces:
        if piece.role is None:
            continue
        holders = [(box, part) for box, part in parts if layouts.clip(piece, box) is piece]
        if (
            not holders
            or piece.permute
            or piece.offset
            or piece.num_elements != prod(task.layout.hf_shapes[piece.role])
        ):
            return None
        box, part = holders[0]
        view = part[slices(shifted(piece.megatron_box, box))]
        views[task.mapping.hf_names[piece.role]] = view.view(task.layout.hf_shapes[piece.role])
    return views


def _buckets(tasks: Iterable[WeightConversionTask], max_bytes: int) -> Iterator[list[WeightConversionTask]]:
    bucket: list[WeightConversionTask] = []
    size = 0
    for task in tasks:
        assert task.dtype is not None
        num_bytes = prod(task.shape) * task.dtype.itemsize
        if bucket and size + num_bytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(task)
        size += num_bytes
    if bucket:
        yield bucket


def _convert(name: str, weight: "Tensor", cpu: bool, dtype: torch.dtype) -> "Tensor":
    weight = weight.detach()
    converted = weight.to(dtype)
    check_range(converted, weight, name)
    return converted.cpu() if cpu else converted


def _config(chunks: "Sequence[MegatronModule]") -> "DecoderConfig":
    return cast("DecoderConfig", chunks[0].config)


def _read_parameters(chunks: "Sequence[MegatronModule]") -> list[Parameter]:
    with ExitStack() as stack:
        for chunk in chunks:  # a value model hides its loss modules while its weights are named
            hide = getattr(chunk, "hide_loss_modules", None)
            if hide is not None:
                stack.enter_context(hide())
        return read_placement(chunks)


def _name(hf_pretrained: "HFModel") -> str:
    return str(getattr(hf_pretrained, "model_name_or_path", None) or type(hf_pretrained.config).__name__)
