"""Writes a live, perhaps sharded, model as the weight files of an HF folder."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import weight_stream
from megatron.bridge.models.conversion.hf_save import output_shards
from megatron.bridge.models.conversion.plan import Plan, check_names
from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter
from megatron.bridge.transport import process_groups

if TYPE_CHECKING:
    import torch

    from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


def save(
    bridge: "MegatronModelBridge",
    hf_pretrained: Any,
    model: Any,
    out: Path,
    *,
    show_progress: bool = False,
    strict: bool = True,
    weight_dtype: "torch.dtype | None" = None,
) -> None:
    """Every rank takes part in the export; rank 0 writes each tensor as it arrives.

    Raises:
        PlanError: `strict`, and the tensors are not exactly the source's; nothing is written.
    """
    plan = Plan(weight_stream.build_global_tasks(bridge, hf_pretrained, model))
    infos = weight_stream.hf_tensor_infos(hf_pretrained)
    registry = bridge.registry()
    if infos is not None:
        plan.dropped = {name: reason for name in infos if (reason := registry.drop_reason(name))}
        plan.tied = {name: same_as for name, same_as in registry.tied().items() if name in infos}
        if strict:
            check_names(plan, infos, str(out))
    dtypes = {name: weight_dtype or task.dtype for task in plan for name in task.hf_shapes}
    shards, options = output_shards(plan.hf_shapes(), dtypes, plan.tied, hf_pretrained)  # type: ignore[arg-type]
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
        ):
            if writer is not None:
                writer.write(name, tensor)
    process_groups.barrier()
