"""Offline conversion: HF folder <-> torch_dist checkpoint, without ever holding the model.

The model is built on the meta device only to learn the placement of its weights; tensors then stream from file to
file, each read at the moment it is written.
"""

import copy
import io
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron.bridge.errors import CheckpointError, ParallelLayoutError, PlanError
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.layout import Shape
from megatron.bridge.models.conversion.placement import Parameter, Shard, read_placement
from megatron.bridge.models.conversion.plan import Plan, WeightConversionTask, build_plan, check_names
from megatron.bridge.models.conversion.weight_stream import check_tied, hf_tensor_infos, read_hf_tensors
from megatron.bridge.models.model_provider import UNSHARDED
from megatron.bridge.training.model_load_save import TOKENIZER_FOLDER, TRACKER_NAME
from megatron.bridge.training.run_config import write_run_config
from megatron.bridge.transport import process_groups, torch_dist
from megatron.bridge.transport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

# Checkpoint entries that are not weights of the model.
_NOT_WEIGHTS = ("optimizer", "chained_", "rng_state", "rerun_state", "opt_param_scheduler", "common")


def ensure_unsharded() -> None:
    """Makes sure that this process can build a whole model: process groups of size 1, made here if there are none.

    Raises:
        ParallelLayoutError: this process works with sharded process groups.
    """
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        process_groups.initialize()
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
    )
    if sizes != (1, 1, 1):
        raise ParallelLayoutError(
            f"offline conversion needs process groups of tensor, pipeline and expert size 1, found {sizes}; run it in "
            "a process of its own, or save or load the live model instead"
        )


def meta_placement(provider: Any) -> tuple[list[Parameter], Any, Mapping[str, bytes]]:
    """What a checkpoint of the whole model holds, read from a model without memory.

    Returns:
        The parameters, the finalised config of the unsharded model, and the serialised non-tensor entries.
    """
    ensure_unsharded()
    provider = copy.deepcopy(provider)
    for name, value in {**UNSHARDED, "use_cpu_initialization": True, "perform_initialization": False}.items():
        setattr(provider, name, value)
    provider.finalize()
    with torch.device("meta"):
        model = provider.provide(pre_process=True, post_process=True)
    return read_placement([model]), provider, _objects(model)


def import_checkpoint(
    bridge: "MegatronModelBridge",
    hf_pretrained: Any,
    provider: Any,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    show_progress: bool = False,
) -> Plan:
    """Writes an HF checkpoint as `out/iter_0000000`, with `run_config.yaml`, tokenizer and tracker file.

    Args:
        bridge: with `hf_config` set.
        dtype: convert floating-point weights; default: each keeps the dtype it is stored in.

    Raises:
        PlanError: the checkpoint and the model do not match; nothing is written.
        CheckpointError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: already exists and is not empty; choose another folder or remove it")
    infos = hf_tensor_infos(hf_pretrained)
    what = hf_pretrained.model_name_or_path
    if infos is None:
        raise CheckpointError(f"{what}: there are no weights to import, only a config")
    parameters, config, objects = meta_placement(provider)
    plan = build_plan(parameters, bridge.registry(), config, infos, what=what)
    state = hf_pretrained.state
    check_tied(plan, state)
    staging = out.with_name(f".{out.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        folder = staging / "iter_0000000"
        with Progress("importing", sum(len(task.shards) for task in plan), enabled=show_progress) as progress:
            torch_dist.write(folder, _entries(bridge, plan, state, dtype, progress), objects)
        write_run_config(folder, provider, what)
        hf_pretrained.save_artifacts(folder / TOKENIZER_FOLDER)
        (staging / TRACKER_NAME).write_text("0")
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return plan


def _entries(
    bridge: "MegatronModelBridge", plan: Plan, state: Any, dtype: torch.dtype | None, progress: Progress
) -> Iterator[torch_dist.Entry]:
    for task in plan:
        source_dtype = next(iter(state.infos[name].dtype for name in task.hf_shapes))
        target = dtype if dtype is not None and source_dtype.is_floating_point else source_dtype
        for shard in task.shards:
            yield torch_dist.Entry(
                key=shard.key,
                global_shape=shard.global_shape,
                global_offset=shard.global_offset,
                shape=_stacked_shape(shard),
                dtype=target,
                produce=partial(_produce, bridge, task, shard, state, target, progress),
            )


def _produce(
    bridge: "MegatronModelBridge",
    task: WeightConversionTask,
    shard: Shard,
    state: Any,
    dtype: torch.dtype,
    progress: Progress,
) -> "Tensor":
    hf_tensors = read_hf_tensors(bridge, task, state)
    parts = [part for piece in task.layout.pieces if (part := layouts.clip(piece, shard.box)) is not None]
    if len(parts) == 1 and parts[0].role is not None:
        data = layouts.take(hf_tensors[parts[0].role], parts[0]).to(dtype).contiguous()
    else:
        data = torch.empty([stop - start for start, stop in shard.box], dtype=dtype)
        layouts.assemble(task.layout, hf_tensors, data, shard.box)
    progress.advance(data.nbytes)
    return data


def _stacked_shape(shard: Shard) -> Shape:
    shape = tuple(stop - start for start, stop in shard.box)
    return (1,) * (len(shard.global_shape) - len(shape)) + shape


def export_checkpoint(
    bridge: "MegatronModelBridge",
    hf_pretrained: Any,
    provider: Any,
    folder: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    show_progress: bool = False,
) -> Plan:
    """Writes a torch_dist checkpoint, saved from any layout, as an HF folder.

    Args:
        hf_pretrained: the source of config, tokenizer and, if it has weights, of the shard layout.
        folder: the iteration's folder.
        dtype: convert floating-point weights; default: as stored.
        strict: the tensors must be exactly those of the source.

    Raises:
        PlanError: weights of one side are missing on the other; nothing is written.
        CheckpointError: the checkpoint is damaged, or `out` holds other weights.
    """
    from megatron.bridge.models.conversion.hf_save import output_shards
    from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter

    reader = torch_dist.TorchDistReader(folder)
    parameters, config, _ = meta_placement(provider)
    plan = build_plan(parameters, bridge.registry(), config, None, what=str(folder))
    _check_keys(reader, plan, folder)
    infos = hf_tensor_infos(hf_pretrained)
    tied = {name: same_as for name, same_as in bridge.registry().tied().items() if infos is not None and name in infos}
    plan.tied = tied
    if infos is not None and strict:
        plan.dropped = {name: reason for name in infos if (reason := bridge.registry().drop_reason(name))}
        check_names(plan, infos, str(out))
    dtypes = {
        name: _target_dtype(reader.tensors[task.shards[0].key].properties.dtype, dtype)
        for task in plan
        for name in task.hf_shapes
    }
    shards, options = output_shards(plan.hf_shapes(), dtypes, tied, hf_pretrained)
    copies = {same_as: name for name, same_as in tied.items()}
    with (
        SafetensorsWriter(out, shards, **options) as writer,
        Progress("exporting", len(plan), enabled=show_progress) as progress,
    ):
        for task in plan:
            weight = _read_weight(reader, task)
            hf_tensors = layouts.split(task.layout, weight)
            names = task.mapping.hf_names
            weights = {names[role]: tensor for role, tensor in hf_tensors.items()}
            state = hf_pretrained.state if infos is not None else None
            for name, tensor in bridge.maybe_modify_converted_hf_weight(task, weights, state).items():
                tensor = tensor.to(dtypes.get(name, tensor.dtype))
                writer.write(name, tensor)
                if name in copies:
                    writer.write(copies[name], tensor)
            progress.advance(weight.nbytes)
    hf_pretrained.save_artifacts(out)
    return plan


def _target_dtype(stored: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and stored.is_floating_point else stored


def _check_keys(reader: torch_dist.TorchDistReader, plan: Plan, folder: Path) -> None:
    wanted = {shard.key for task in plan for shard in task.shards}
    problems = [f"Megatron weight {key}: missing in the checkpoint" for key in sorted(wanted - reader.tensors.keys())]
    for key in sorted(reader.tensors.keys() - wanted):
        if not key.startswith(_NOT_WEIGHTS) and "_extra_state" not in key:
            problems.append(
                f"Megatron weight {key}: in the checkpoint, but not in the model of {folder / 'run_config.yaml'}"
            )
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PlanError(f"{folder}: the checkpoint and its model do not match, nothing was converted:\n{lines}")


def _read_weight(reader: torch_dist.TorchDistReader, task: WeightConversionTask) -> "Tensor":
    """A whole Megatron weight: padding rows that the checkpoint lacks stay zero, rows that it has more are ignored."""
    parts = []
    for shard in task.shards:
        num_stacked = len(shard.global_shape) - len(shard.box)
        stacked = tuple((start, start + 1) for start in shard.global_offset[:num_stacked])
        stored = tuple(reader.tensors[shard.key].size[num_stacked:])
        box = tuple((start, min(stop, size)) for (start, stop), size in zip(shard.box, stored, strict=True))
        parts.append((box, reader.read(shard.key, (*stacked, *box)).squeeze(tuple(range(num_stacked)))))
    if len(parts) == 1 and parts[0][0] == layouts.whole(task.shape):
        return parts[0][1]
    weight = parts[0][1].new_zeros(task.shape)
    for box, part in parts:
        weight[layouts.slices(box)] = part
    return weight


def _objects(model: Any) -> dict[str, bytes]:
    """The non-tensor entries that megatron-core's loader asks for, serialised.

    These are the common state, and an extra state per linear layer (empty without Transformer Engine's FP8).
    """
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    common = ShardedObject("common_state", None, (1,), (0,))
    empty = _serialized([None])
    entries = model.sharded_state_dict().values()
    extra_states = {entry.unique_key: empty for entry in entries if isinstance(entry, ShardedObject)}
    return {common.unique_key: _serialized([{"iteration": 0}]), **extra_states}


def _serialized(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
