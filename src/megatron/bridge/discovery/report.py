"""`ModelReport`: everything that an inspection finds out, as plain data."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

from megatron.bridge.discovery.config_levels import Fact, Json, as_json
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
    """The classes that a model's config names, and those of transformers.

    Attributes:
        architectures, model_type, auto_map: as the config states them.
        config_class: transformers' class; `None` if it does not know the model.
        refusal: why transformers refuses the config.
        modeling_file: the file with the HF computation.
    """

    architectures: list[str]
    model_type: str | None
    auto_map: dict[str, object]
    config_class: str | None
    refusal: str | None
    modeling_file: str | None


@dataclass
class Tying:
    """Whether the output layer is the embedding.

    Attributes:
        fact: what the config says at its top level.
        text_level: what the text model's own config says, which transformers ignores; `None` if nothing.
        has_output_layer: whether the checkpoint stores an output layer; `None` without weights.
    """

    fact: Fact | None
    text_level: object
    has_output_layer: bool | None

    @property
    def is_tied(self) -> bool:
        """Whether transformers ties the two."""
        return bool(self.fact and self.fact.value)


@dataclass
class Parameters:
    """How many parameters there are, and how many bytes store them. Quantised weights count as weights.

    Attributes:
        is_expected: whether the parameters are counted from the config alone, because there are no weights.
        total: the parameters of the model itself, without prediction layers and second copies.
        active: those that a token uses.
        by_category: those of each category, prediction layers and copies included.
        bytes_by_dtype: the stored bytes of each category by dtype.
        stored_bytes, num_tensors, num_files: the size of the checkpoint.
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
    """The family that supports the model, or the nearest one.

    Attributes:
        architecture, bridge, bridge_file, provider: those of the family; `None` if no family is near.
        is_supported: whether the model has that architecture.
        reason: why it does not, or why it cannot be supported.
        proven_layouts: the layouts on which the family's logits and round trip were compared with transformers.
        unknown_fields: fields that no family knows, and that transformers may read.
        foreign_fields: fields that other families know, but this one does not.
        encoder_fields: fields of a VLM's top level that transformers' class reads for the encoder and the projector.
        not_read: fields that the family does not know, and that transformers provably does not read.
        refused: values that the family cannot represent.
        unmatched: names of tensors without a rule, and for how many tensors each stands.
        num_matched: the number of tensors with a rule.
        num_of_encoders: the number of tensors of encoders and projectors.
        dropped: the number of tensors that are left out on purpose, by reason.
        absent: patterns of tensors that the nearest family has but this model does not.
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
    not_read: list[UnknownField] = field(default_factory=list)
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
        name: the model's name, as it was given.
        source: "folder", "hub id" or "config.json".
        kind: "LLM", "VLM" or "other", for `kind_reason`.
        text_level: the level of the text model's fields.
        facts: fields by subject, each with the level that it was read from.
        summaries: a sentence per subject.
        layouts: `None` for a model without decoder layers.
        problems: what is wrong with the files.
        decisions, next_step: the path through the decision tree, and its end.
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

    def to_dict(self) -> dict[str, Json]:
        """The report as JSON would have it."""
        return {item.name: as_json(getattr(self, item.name)) for item in fields(self)}
