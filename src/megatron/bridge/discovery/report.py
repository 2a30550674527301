"""`ModelReport`: everything that an inspection finds, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from megatron.bridge.discovery.config_levels import Fact
from megatron.bridge.discovery.families import RefusedValue, UnknownField
from megatron.bridge.discovery.layouts import ParallelLayouts
from megatron.bridge.discovery.quantized import Quantization
from megatron.bridge.discovery.weights import Layer


class Decision(NamedTuple):
    """A question of the decision tree of model support, and its answer for this model."""

    question: str
    answer: str


@dataclass
class Classes:
    """Which classes are concerned.

    Attributes:
        architectures, model_type, auto_map: as the config states them.
        config_class: of transformers; `None` if it does not know the model.
        refusal: why transformers refuses the config.
        modeling_file: where the HF computation is written.
    """

    architectures: list[str]
    model_type: str | None
    auto_map: dict[str, Any]
    config_class: str | None
    refusal: str | None
    modeling_file: str | None


@dataclass
class Tying:
    """Whether the output layer is the embedding.

    Attributes:
        fact: what the config says, at its top level.
        text_level: a statement of the text model's own config, which transformers does not follow; or `None`.
        has_output_layer: whether the checkpoint stores an output layer; `None` without weights.
    """

    fact: Fact | None
    text_level: Any
    has_output_layer: bool | None

    @property
    def is_tied(self) -> bool:
        """Whether transformers ties the two."""
        return bool(self.fact and self.fact.value)


@dataclass
class Parameters:
    """Counts of the numbers that are meant, quantised or not, and the bytes that store them.

    Attributes:
        is_expected: whether they are counted from the config alone, because there are no weights.
        total: of the model itself, without prediction layers and second copies.
        active: that a token meets.
        by_category: with prediction layers and copies.
        bytes_by_dtype: stored bytes of each category by the dtype of the numbers.
        stored_bytes, num_tensors, num_files: of the checkpoint.
    """

    is_expected: bool = False
    total: int = 0
    active: int = 0
    by_category: dict[str, int] = field(default_factory=dict)
    bytes_by_dtype: dict[str, dict[str, int]] = field(default_factory=dict)
    stored_bytes: int = 0
    num_tensors: int = 0
    num_files: int = 0


@dataclass
class Support:
    """The family that supports the model, or the nearest.

    Attributes:
        architecture, bridge, bridge_file, provider: of the family; `None` if no family is near.
        is_supported: whether the model is of that architecture.
        reason: why it is not.
        proven_layouts: on which the family's logits and round trip were compared with transformers.
        unknown_fields: no family knows them.
        foreign_fields: other families know them, this one does not.
        encoder_fields: a VLM's own, which transformers' class reads for its encoder and what joins it.
        refused: values that the family cannot represent.
        unmatched: tensors without a rule, with how many each stands for.
        num_matched: tensors with a rule.
        num_of_encoders: tensors of encoders and of what joins them to the text model.
        dropped: tensors that are left out on purpose, by reason.
        absent: patterns of tensors that the nearest family has and this model does not.
    """

    architecture: str | None = None
    bridge: str | None = None
    bridge_file: str | None = None
    provider: str | None = None
    is_supported: bool = False
    reason: str | None = None
    proven_layouts: list[str] = field(default_factory=list)
    unknown_fields: list[UnknownField] = field(default_factory=list)
    foreign_fields: list[UnknownField] = field(default_factory=list)
    encoder_fields: list[UnknownField] = field(default_factory=list)
    refused: list[RefusedValue] = field(default_factory=list)
    unmatched: dict[str, int] = field(default_factory=dict)
    num_matched: int = 0
    num_of_encoders: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


@dataclass
class ModelReport:
    """What a model is, from its config and the headers of its weight files.

    Attributes:
        name: as it was given.
        source: "folder", "hub id" or "config.json".
        kind: "LLM", "VLM" or "other", with `kind_reason`.
        text_level: where the text model's fields stand.
        facts: fields by subject, each with the level that it was read from.
        summaries: a sentence per subject.
        layouts: `None` for a model without decoder layers.
        problems: what is wrong with the files.
        decisions, next_step: the way through the decision tree, and where it ends.
    """

    name: str
    source: str
    kind: str
    kind_reason: str
    text_level: str
    classes: Classes
    tying: Tying
    facts: dict[str, list[Fact]]
    summaries: dict[str, str]
    parameters: Parameters
    layers: list[Layer]
    quantization: Quantization
    support: Support
    layouts: ParallelLayouts | None
    problems: list[str]
    decisions: list[Decision] = field(default_factory=list)
    next_step: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
