"""The plan: every Megatron weight with the HF tensors it is made of, checked on both sides before a byte moves.

Import, export, live load, live export and comparison all execute a plan; none of them looks at names or shapes again.
A plan is data: it can be printed, counted and costed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from megatron.bridge.errors import BridgeError, PlanError
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.param_mapping import MegatronParamMapping
from megatron.bridge.models.placement import Parameter, Shard
from megatron.bridge.transport.boxes import Box, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_LAYER = re.compile(r".*?\.layers\.(\d+)\.")
_EXPERT = re.compile(r".*\.experts\..*?(\d+)$")
_MAX_PROBLEMS = 200


class TensorInfo(Protocol):
    """What a plan needs to know of an HF tensor."""

    @property
    def shape(self) -> Shape: ...


@dataclass
class WeightConversionTask:
    """One Megatron weight and how to convert it.

    The fields down to `param_weight` are the public contract; exports read `param_weight` at the moment of use, so a
    caller may pass tasks whose weight was replaced or is computed on access.

    Attributes:
        param_name: name in this rank's model chunk (without wrappers), or the global name if the rank lacks it.
        global_param_name: name in the whole model.
        mapping: resolved, without wildcards.
        pp_rank: pipeline rank that holds the weight.
        vp_stage: index of the model chunk on that rank.
        megatron_module: the module that owns the parameter, or `None` if this rank lacks it.
        param_weight: this rank's shard, or `None` if this rank lacks it.
        shape: of the whole weight.
        dtype: of the Megatron weight.
        layout: of the whole weight.
        shards: the boxes that this rank holds.
        owners: for each box of the whole weight a rank that holds it; filled when ranks have been asked.
        weight_dtype: of floating-point tensors that an export gives; `None` for `dtype`.
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

    @property
    def hf_shapes(self) -> dict[str, Shape]:
        """Shapes of the task's HF tensors, by HF name."""
        names = self.mapping.hf_names
        return {names[role]: tuple(shape) for role, shape in self.layout.hf_shapes.items()}


@dataclass
class Plan:
    """Ordered tasks, and the HF tensors that no task reads.

    Attributes:
        dropped: HF tensors left out on purpose, with the reason.
        tied: those of them that are second copies, with the name of the tensor that they equal.
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
        """Elements of the whole Megatron model, vocabulary padding included."""
        return sum(prod(task.shape) for task in self.tasks)

    def hf_shapes(self) -> dict[str, Shape]:
        """Shapes by name of every HF tensor that the plan reads or writes, in model order."""
        return {name: shape for task in self.tasks for name, shape in task.hf_shapes.items()}


def build_plan(
    parameters: Iterable[Parameter],
    registry: MegatronMappingRegistry,
    config: Any,
    hf_tensors: Mapping[str, TensorInfo] | None,
    *,
    what: str,
    allowed_mismatched_params: Iterable[str] = (),
) -> Plan:
    """Matches Megatron parameters and HF tensors, and proves that nothing is missing on either side.

    Args:
        parameters: what this rank holds, or the whole model. HF tensors of layers that are not among them are the
            business of the ranks that hold these layers.
        registry: the family's mappings.
        config: the provider.
        hf_tensors: the checkpoint's tensors by name; `None` if there is no checkpoint to compare with.
        what: the model, named in errors.
        allowed_mismatched_params: Megatron names that keep their present values where the checkpoint lacks them or
            has another shape (a value head in place of the LM head).

    Raises:
        PlanError: listing every Megatron weight without a rule, and every HF tensor that is missing, misshapen or
            not read.
    """
    parameters = list(parameters)
    problems: list[str] = []
    tasks: list[WeightConversionTask] = []
    read: set[str] = set()
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
        read.update(task.hf_shapes)
        found = _hf_problems(task, hf_tensors) if hf_tensors is not None else []
        if found and parameter.name in allowed:
            continue
        problems += found
        tasks.append(task)
    dropped: dict[str, str] = {}
    if hf_tensors is not None:
        unread, dropped = _unread(hf_tensors, read, registry, _ownership(parameters, config), allowed)
        problems += unread
    if problems:
        raise _plan_error(what, problems)
    tied = {name: same_as for name, same_as in registry.tied().items() if name in dropped}
    return Plan(tasks, dropped, tied)


def check_names(plan: Plan, expected: Mapping[str, TensorInfo], what: str) -> None:
    """Raises `PlanError` unless an export of `plan` gives exactly the tensors in `expected`, less the dropped ones."""
    given = plan.hf_shapes().keys() | plan.tied.keys()
    problems = [
        f"HF tensor {name}: would be written, but the source has no such tensor" for name in given - expected.keys()
    ]
    problems += [
        f"HF tensor {name}: lost, no Megatron weight holds it" for name in expected.keys() - given - plan.dropped.keys()
    ]
    if problems:
        raise _plan_error(what, sorted(problems))


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
    read: set[str],
    registry: MegatronMappingRegistry,
    owns: Callable[[str], bool],
    allowed: set[str],
) -> tuple[list[str], dict[str, str]]:
    problems, dropped = [], {}
    for name, info in hf_tensors.items():
        if name in read:
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


def _ownership(parameters: list[Parameter], config: Any) -> Callable[[str], bool]:
    """A test whether a global parameter name would have to be on this rank, judged by its layer (and expert).

    Layers and experts that the model does not have at all are everybody's, so that somebody reports them.
    """
    # Outside layers by the name on this rank: the last stage's copy of tied embeddings is an output layer there.
    places = {
        _place(parameter.name if _LAYER.match(parameter.name) else parameter.param_name) for parameter in parameters
    }
    experts = {expert for parameter in parameters if (expert := _expert(parameter.name)) is not None}

    def owns(name: str) -> bool:
        match, expert = _LAYER.match(name), _expert(name)
        if match and int(match.group(1)) >= config.num_layers:
            return True
        if expert is not None and expert < config.num_moe_experts and expert not in experts:
            return False
        return _place(name) in places

    return owns


def _place(name: str) -> str:
    """The layer of a parameter, or the end of the pipeline that it belongs to."""
    match = _LAYER.match(name)
    if match:
        return match.group()
    return "embedding" if name.partition(".")[0].endswith("embedding") else "head"


def _expert(name: str) -> int | None:
    match = _EXPERT.match(name)
    return int(match.group(1)) if match else None


def _plan_error(what: str, problems: list[str]) -> PlanError:
    shown = problems[:_MAX_PROBLEMS]
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    lines = "\n".join(f"  - {problem}" for problem in [*shown, *more])
    return PlanError(
        f"{what}: the two sides do not match, nothing was converted. {len(problems)} problem(s):\n{lines}\n"
        "Check that config.json and the weight files belong together; a block that no family describes needs a mapping."
    )
