"""How an export differs from the model that it came from: listed, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron.bridge.errors import PlanError
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.param_mapping import NotComputed
from megatron.bridge.models.conversion.plan import Plan, TensorInfo

_MAX_LINES = 200


@dataclass(frozen=True)
class ExportReport:
    """What an export writes otherwise than the source has it. A tensor with another dtype is no difference.

    Attributes:
        changed_fields: field of `config.json` -> the source's value and the model's.
        lost: tensor of the source that is not written -> why.
        added: tensors that the source does not have.
    """

    changed_fields: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    added: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line per difference; none if the export has what the source has."""
        return [
            *(
                f"config.json {name}: {source!r:.200} in the source, {model!r:.200} in the model"
                for name, (source, model) in self.changed_fields.items()
            ),
            *(f"HF tensor {name}: lost, {reason}" for name, reason in sorted(self.lost.items())),
            *(f"HF tensor {name}: would be written, but the source has no such tensor" for name in sorted(self.added)),
        ]


def compare_with_source(
    plan: Plan,
    source: tuple[Mapping[str, TensorInfo], MegatronMappingRegistry] | None,
    changed_fields: Mapping[str, tuple[object, object]],
    strict: bool | None,
    out: str,
) -> ExportReport:
    """The differences between an export and its source.

    Args:
        plan: the plan of the export, with the second copies that it writes.
        source: the source's tensors and the mappings of its config; `None` if there is only a config.
        changed_fields: those of the config.
        strict: whether a difference is an error. `None`: a changed field is none, and neither are lost tensors of a
            part that the model does not compute (prediction layers).
        out: the name of the export, for errors.

    Raises:
        PlanError: naming every difference that is an error.
    """
    lost: dict[str, str] = {}
    not_computed: dict[str, str] = {}
    added: tuple[str, ...] = ()
    if source is not None:
        infos, registry = source
        written = plan.hf_shapes().keys() | plan.tied.keys()
        added = tuple(name for name in written if name not in infos)
        for name in infos.keys() - written:
            mark = registry.drop_mark(name)
            if mark is None:
                lost[name] = "no Megatron weight holds it"
            elif isinstance(mark, NotComputed):
                not_computed[name] = mark.reason
    report = ExportReport(changed_fields, lost | not_computed, added)
    refused = report if strict else ExportReport(lost=lost, added=added)
    problems = [] if strict is False else refused.lines()
    if problems:
        more = [f"... and {len(problems) - _MAX_LINES} more"] if len(problems) > _MAX_LINES else []
        lines = "\n".join(f"  - {problem}" for problem in [*problems[:_MAX_LINES], *more])
        raise PlanError(
            f"{out}: the two sides do not match, nothing was converted. {len(problems)} problem(s):\n{lines}\n"
            "Pass strict=False to export the model as it is."
        )
    return report
