"""The plan: every Megatron weight with the HF tensors it is made of, checked on both sides before a byte moves.

Import, export, live load, live export and comparison all carry out a plan; none of them looks at names or shapes again.
A plan is data: it can be printed, counted and costed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Protocol

from megatron.bridge.errors import BridgeError, PlanError
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.param_mapping import MegatronParamMapping
from megatron.bridge.models.placement import FLOAT32_WEIGHTS, Parameter, Shard
from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from megatron.bridge.models.transformer.decoder_config import DecoderConfig

_LAYER = re.compile(r".*?\.layers\.(\d+)\.")
_EXPERT = re.compile(r".*\.experts\..*?(\d+)$")
_MAX_PROBLEMS = 200
_NEXT_STEP = (
    "Check that config.json and the weight files belong together; a block that no family describes needs a mapping."
)
_PLACEHOLDERS = (
    "There are tensors without elements, as DeepSpeed's ZeRO-3 leaves them where weights are saved ungathered. "
    "`python zero_to_fp32.py . . --safe_serialization`, in the folder of the training checkpoint, puts them together."
)


class TensorInfo(Protocol):
    """What a plan must know about an HF tensor."""

    @property
    def shape(self) -> Shape: ...


@dataclass
class WeightConversionTask:
    """One Megatron weight and how to convert it.

    The fields down to `param_weight` are the public contract. Exports read `param_weight` only when they use it, so a
    caller may pass tasks whose weight was replaced or is computed on access.

    Attributes:
        param_name: the name in this rank's model chunk (without wrappers), or the global name if the rank lacks it.
        global_param_name: the name in the whole model.
        mapping: the mapping, without wildcards.
        pp_rank: the pipeline rank that holds the weight.
        vp_stage: the index of the model chunk on that rank.
        megatron_module: the module that owns the parameter, or `None` if this rank lacks it.
        param_weight: this rank's shard, or `None` if this rank lacks it.
        shape: the shape of the whole weight.
        dtype: the dtype of the Megatron weight.
        layout: the layout of the whole weight.
        shards: the boxes that this rank holds.
        owners: for each box of the whole weight, a rank that holds it; filled in once all ranks have been asked.
        weight_dtype: the dtype in which floating-point tensors are exported; `None` for `dtype`.
    """

    param_name: str
    global_param_name: str
    mapping: MegatronParamMapping
    pp_rank: int | None = None
    vp_stage: int | None = None
    megatron_module: "nn.Module | None" = None
    param_weight: "Tensor | None" = None
    shape: Shape = ()
    dtype: "torch.dtype | None" = None
    layout: Layout = field(default_factory=lambda: Layout((), {}))
    shards: tuple[Shard, ...] = ()
    owners: dict[Box, int] = field(default_factory=dict)
    weight_dtype: "torch.dtype | None" = None

    def converted_dtype(self, stored: "torch.dtype", wanted: "torch.dtype | None") -> "torch.dtype":
        """The dtype in which the weight is written that is stored in one dtype and wanted in another."""
        import torch

        if wanted is None or not stored.is_floating_point:
            return stored
        is_kept = self.global_param_name.endswith(FLOAT32_WEIGHTS)
        return torch.promote_types(stored, wanted) if is_kept else wanted

    @property
    def hf_shapes(self) -> dict[str, Shape]:
        """The shapes of the task's HF tensors, by HF name."""
        names = self.mapping.hf_names
        return {names[role]: tuple(shape) for role, shape in self.layout.hf_shapes.items()}


@dataclass
class Plan:
    """Ordered tasks, and the HF tensors that no task reads.

    Attributes:
        dropped: HF tensors that are left out on purpose, and why.
        tied: those of them that are second copies, each with the name of the tensor that it equals.
    """

    tasks: list[WeightConversionTask]
    dropped: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[WeightConversionTask]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def num_elements(self) -> int:
        """The number of elements in the whole Megatron model, including vocabulary padding."""
        return sum(prod(task.shape) for task in self.tasks)

    def hf_shapes(self) -> dict[str, Shape]:
        """The shape of every HF tensor that the plan reads or writes, by name, in model order."""
        return {name: shape for task in self.tasks for name, shape in task.hf_shapes.items()}


def build_plan(
    parameters: Iterable[Parameter],
    registry: MegatronMappingRegistry,
    config: "DecoderConfig",
    hf_tensors: Mapping[str, TensorInfo] | None,
    *,
    model_name: str,
    allowed_mismatched_params: Iterable[str] = (),
) -> Plan:
    """Matches Megatron parameters and HF tensors, and proves that nothing is missing on either side.

    Args:
        parameters: those that this rank holds, or those of the whole model. HF tensors of other layers are left to the
            ranks that hold these layers.
        registry: the family's mappings.
        config: the provider.
        hf_tensors: the checkpoint's tensors by name; `None` if there is no checkpoint to compare with.
        model_name: the name of the model, for errors.
        allowed_mismatched_params: Megatron names that keep their present values if the checkpoint lacks them or has
            another shape (a value head instead of the LM head).

    Raises:
        PlanError: listing every Megatron weight without a mapping, and every HF tensor that is missing, has another
            shape, or is not read.
    """
    parameters = list(parameters)
    problems: list[str] = []
    tasks: list[WeightConversionTask] = []
    read_names: set[str] = set()
    allowed = set(allowed_mismatched_params)
    for parameter in parameters:
        mapping = registry.megatron_to_hf_lookup(parameter.name)
        if mapping is None:
            if parameter.name not in allowed:
                problems.append(f"Megatron weight {parameter.name} {list(parameter.shape)}: no mapping writes it")
            continue
        try:
            layout = mapping.layout(parameter.shape, config)
        except BridgeError as error:
            problems.append(str(error))
            continue
        task = _task(parameter, mapping, layout)
        read_names.update(task.hf_shapes)
        hf_problems = _hf_problems(task, hf_tensors) if hf_tensors is not None else []
        if hf_problems and parameter.name in allowed:
            continue
        problems += hf_problems
        tasks.append(task)
    dropped: dict[str, str] = {}
    if hf_tensors is not None:
        unread, dropped = _unread(hf_tensors, read_names, registry, _ownership(parameters, config), allowed)
        problems += unread
    if problems:
        are_empty = any(0 in info.shape for info in (hf_tensors or {}).values())
        raise _plan_error(model_name, problems, _PLACEHOLDERS if are_empty else _NEXT_STEP)
    tied = {name: same_as for name, same_as in registry.tied().items() if name in dropped}
    return Plan(tasks, dropped, tied)


def _task(parameter: Parameter, mapping: MegatronParamMapping, layout: Layout) -> WeightConversionTask:
    return WeightConversionTask(
        param_name=parameter.param_name,
        global_param_name=parameter.name,
        mapping=mapping,
        vp_stage=parameter.vp_stage,
        param_weight=parameter.tensor,
        shape=parameter.shape,
        dtype=parameter.dtype,
        layout=layout,
        shards=tuple(parameter.shards),
    )


def _hf_problems(task: WeightConversionTask, hf_tensors: Mapping[str, TensorInfo]) -> list[str]:
    problems = []
    for name, shape in task.hf_shapes.items():
        info = hf_tensors.get(name)
        if info is None:
            problems.append(f"HF tensor {name} {list(shape)}: missing, needed by {task.global_param_name}")
        elif tuple(info.shape) != shape:
            problems.append(
                f"HF tensor {name}: expected {list(shape)} for {task.global_param_name}, found {list(info.shape)}"
            )
    return problems


def _unread(
    hf_tensors: Mapping[str, TensorInfo],
    read_names: set[str],
    registry: MegatronMappingRegistry,
    owns: Callable[[str], bool],
    allowed: set[str],
) -> tuple[list[str], dict[str, str]]:
    """The problems with tensors that no task reads, and the tensors among them that are dropped, and why."""
    problems, dropped = [], {}
    for name, info in hf_tensors.items():
        if name in read_names:
            continue
        reason = registry.drop_reason(name)
        if reason is not None:
            dropped[name] = reason
            continue
        mapping = registry.hf_to_megatron_lookup(name)
        if mapping is None:
            problems.append(f"HF tensor {name} {list(info.shape)}: no mapping reads it")
        elif mapping.megatron_param in allowed:
            dropped[name] = f"{mapping.megatron_param} is allowed to differ"
        elif owns(mapping.megatron_param):
            problems.append(f"HF tensor {name} {list(info.shape)}: not read, the model has no {mapping.megatron_param}")
    return problems, dropped


def _ownership(parameters: list[Parameter], config: "DecoderConfig") -> Callable[[str], bool]:
    """A function that says whether a global parameter name belongs on this rank, by its layer and expert.

    Names of layers and experts that the model does not have at all belong on every rank, so that they are reported.
    """
    # Outside layers, names on this rank count: the last stage's copy of tied embeddings is its output layer.
    names = (parameter.name if _LAYER.match(parameter.name) else parameter.param_name for parameter in parameters)
    places = {_place(name, config) for name in names}
    experts = {expert for parameter in parameters if (expert := _expert(parameter.name)) is not None}

    def owns(name: str) -> bool:
        match, expert = _LAYER.match(name), _expert(name)
        if match and int(match.group(1)) >= config.num_layers:
            return True
        if expert is not None and expert < (config.num_moe_experts or 0) and expert not in experts:
            return False
        return _place(name, config) in places

    return owns


def _place(name: str, config: "DecoderConfig") -> str:
    """The layer of a parameter, or else the end of the pipeline to which it belongs."""
    match = _LAYER.match(name)
    if match:
        return match.group()
    if config.mtp_standalone and name.startswith("decoder.final_"):
        return "last layer"  # elsewhere, the last stage has both the last layer and the output layer
    return "embedding" if name.partition(".")[0].endswith("embedding") else "head"


def _expert(name: str) -> int | None:
    match = _EXPERT.match(name)
    return int(match.group(1)) if match else None


def _plan_error(model_name: str, problems: list[str], next_step: str = _NEXT_STEP) -> PlanError:
    shown = problems[:_MAX_PROBLEMS]
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    lines = "\n".join(f"  - {problem}" for problem in [*shown, *more])
    return PlanError(
        f"{model_name}: the two sides do not match, nothing was converted. {len(problems)} problem(s):\n{lines}\n"
        f"{next_step}"
    )
