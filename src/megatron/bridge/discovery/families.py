"""Which family of this package a model belongs to: what the family knows of its config and of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.discovery import facts
from megatron.bridge.discovery.config_levels import TOP_LEVEL, LeveledConfig, at_level
from megatron.bridge.discovery.weights import OTHER_MODALITIES, category
from megatron.bridge.models.conversion.fields.common import DECODER, FIXED_FIELDS, IRRELEVANT_FIELDS
from megatron.bridge.models.conversion.fields.part import Parts, combined, in_force, mapped_fields
from megatron.bridge.models.conversion.param_mapping import Dropped
from megatron.bridge.models.conversion.registered import NOT_REPRESENTABLE, RegisteredBridge, registered_bridges

if TYPE_CHECKING:
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry

# Fields that this package, or transformers' config classes, read for every model.
_ALWAYS_KNOWN = {
    *IRRELEVANT_FIELDS,
    *FIXED_FIELDS,
    *("rope_parameters", "rope_theta", "rope_scaling"),
}
_ROPE_FIELDS = {
    *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "long_factor", "short_factor", "attention_factor", "beta_fast"),
    *("beta_slow", "mscale", "mscale_all_dim", "truncate", "alpha"),
    *("full_attention", "sliding_attention", "llama_4_scaling_beta", "max_position_embeddings"),
}
_TOKEN = re.compile(r".*_token(_id|_ids|_index)?|.*_token_id_\w+")
# Where the text model's tensors are in a VLM.
_TEXT_PREFIX = re.compile(r"^(?:model\.|thinker\.)*(?:language_model|text_model|llm)\.(?:model\.)?|^thinker\.model\.")
_MOST_PREDICTED = 1_000  # prediction layers, each of which has rules of its own
# What a config raises that lacks a field, or has a value of another kind than a family expects.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_DIGITS = re.compile(r"\d+|\*+")


class UnknownField(NamedTuple):
    """A field of the config that the families do not know.

    Attributes:
        level: where it stands.
        known_to: architectures that know it; none, and the field is likely a new block.
        in_transformers: whether transformers' config class declares it, so that its modeling file reads it.
    """

    name: str
    value: Any
    level: str
    known_to: tuple[str, ...]
    in_transformers: bool


class RefusedValue(NamedTuple):
    """A field that must have one value for the family to be right, and has another."""

    name: str
    expected: Any
    found: Any


@dataclass
class FamilyMatch:
    """The family of a model, or the nearest one.

    Attributes:
        entry: of the table of architectures.
        registry: its rules for the model; `None` if they cannot be made of the config.
        fields: the provider fields that it reads from the config, less those that it cannot read.
        is_supported: whether the model is of its architecture.
        reason: why it is not, or cannot be.
        unknown_fields: what no family knows.
        foreign_fields: what other families know, and this one does not.
        encoder_fields: of a VLM's top level, which transformers' class reads for the encoder and what joins it.
        refused: values that this family cannot represent.
        unmatched: tensors without a rule.
        of_encoders: tensors of encoders and of what joins them, without a rule of the text model's family.
        megatron_names: Megatron weight by HF tensor that has a rule.
        dropped: tensors that are left out, with the reason.
        absent: for the nearest family, patterns of tensors that it has and the model does not.
    """

    entry: RegisteredBridge | None = None
    registry: MegatronMappingRegistry | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    is_supported: bool = False
    reason: str | None = None
    unknown_fields: list[UnknownField] = field(default_factory=list)
    foreign_fields: list[UnknownField] = field(default_factory=list)
    encoder_fields: list[UnknownField] = field(default_factory=list)
    refused: list[RefusedValue] = field(default_factory=list)
    of_encoders: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    megatron_names: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def match_family(config: LeveledConfig, names: Iterable[str]) -> FamilyMatch:
    """The family that supports a model, or the one that is nearest by config fields and tensor names.

    Args:
        names: HF names of the tensors that are meant (the text model's and others).
    """
    names = list(names)
    bridges = registered_bridges()
    stated = config.values.get("architectures") or []
    architectures = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    found = FamilyMatch()
    found.entry = next((bridges[name] for name in architectures if name in bridges), None)
    found.is_supported = found.entry is not None
    text_names = {text_name(name): name for name in names}
    if found.entry is None:
        refused = next((name for name in architectures if name in NOT_REPRESENTABLE), None)
        if refused is not None:
            found.reason = f"{refused} cannot be converted: {NOT_REPRESENTABLE[refused]}"
        else:
            found.reason = f"no bridge for architecture {', '.join(architectures) or 'none'}"
        found.entry = _nearest(config, bridges, [name for name in text_names if category(name) not in OTHER_MODALITIES])
    _compare_fields(found, config, bridges)
    found.fields = _provider_fields(found.entry.bridge_class.CONFIG if found.entry else DECODER, config)
    if found.entry is not None:
        found.registry = _registry(found.entry, config)
        if names and found.registry is not None:
            _apply_rules(found, found.registry, text_names)
    return found


def text_name(name: str) -> str:
    """The name that a tensor of a VLM's text model has in the text model's own checkpoints."""
    short = _TEXT_PREFIX.sub("model.", name)
    return short.removeprefix("model.") if short.startswith("model.lm_head") else short


def fields_of(entry: RegisteredBridge) -> set[str]:
    """The config fields that a family knows."""
    bridge = entry.bridge_class
    return {*dict(bridge.CONFIG_MAPPING), *bridge.CONFIG_CHECKED, *bridge.CONFIG_IRRELEVANT, *bridge.CONFIG_FIXED}


def _compare_fields(found: FamilyMatch, config: LeveledConfig, bridges: Mapping[str, RegisteredBridge]) -> None:
    known_to: dict[str, list[str]] = {}
    for entry in bridges.values():
        for name in fields_of(entry):
            known_to.setdefault(name, []).append(entry.architecture)
    own = fields_of(found.entry) if found.entry is not None else set()
    for unknown in _unknown_fields(config, known_to):
        if config.text_level and unknown.level == TOP_LEVEL and unknown.in_transformers:
            found.encoder_fields.append(unknown)
        elif not unknown.known_to:
            found.unknown_fields.append(unknown)
        elif found.entry is not None and unknown.name not in own and unknown.value is not None:
            found.foreign_fields.append(unknown)
    if found.entry is None:
        return
    for name, expected in {**FIXED_FIELDS, **found.entry.bridge_class.CONFIG_FIXED}.items():
        fact = config.text(name)
        if fact is not None and fact.value is not None and fact.value != expected:
            found.refused.append(RefusedValue(name, expected, fact.value))


def _unknown_fields(config: LeveledConfig, known_to: Mapping[str, list[str]]) -> list[UnknownField]:
    """All fields, stated or defaults of transformers' class, that are not known to every family."""
    found: list[UnknownField] = []
    text_level = config.text_level or ()
    where = ".".join(text_level) or TOP_LEVEL

    def add(name: str, value: Any, level: str, loaded: Any, known: Iterable[str] = ()) -> None:
        if name not in _ALWAYS_KNOWN and name not in known:
            families = tuple(known_to.get(name, ())) if level == where or level.startswith("default") else ()
            found.append(UnknownField(name, value, level, families, _declares(loaded, name)))

    text = config.text_config
    stated = at_level(config.values, text_level)
    parts = {name for name, value in config.values.items() if isinstance(value, Mapping) and name.endswith("_config")}
    aliases = getattr(type(text), "attribute_map", {}) if text is not None else {}
    for name, value in stated.items():
        is_wrapper = not text_level and config.kind != "LLM" and (name in parts or _TOKEN.fullmatch(name))
        is_alias = name in aliases.values() or name in aliases
        if not is_wrapper and not (is_alias and not known_to.get(name)):
            add(name, value, where, text)
    for name, value in (text.to_dict() if text is not None else {}).items():
        if name not in stated and value is not None:
            add(name, value, f"default of {type(text).__name__}", text)
    for rope in ("rope_parameters", "rope_scaling"):
        for name, value in (stated[rope] if isinstance(stated.get(rope), Mapping) else {}).items():
            if name not in _ROPE_FIELDS:
                found.append(UnknownField(f"{rope}.{name}", value, where, (), False))
    if text_level:
        for name, value in config.values.items():
            if name not in parts and not _TOKEN.fullmatch(name) and name != "tie_word_embeddings":
                add(name, value, TOP_LEVEL, config.loaded)
    if config.vision_level is not None:
        vision = getattr(config.loaded, config.vision_level[-1], None)
        for name, value in at_level(config.values, config.vision_level).items():
            if not _declares(vision, name):
                add(name, value, ".".join(config.vision_level), vision)
    return found


def _declares(loaded: Any, name: str) -> bool:
    """Whether a config class of transformers has a field, rather than keeping whatever it is given."""
    if loaded is None:
        return False
    kind: Any = type(loaded)
    return name in getattr(kind, "__dataclass_fields__", {}) or hasattr(kind, name) or hasattr(_default(kind), name)


@cache
def _default(config_class: Any) -> Any:
    """A config with nothing but defaults, `None` for a class that needs more."""
    try:
        return config_class()
    except _UNREADABLE:
        return None


def _apply_rules(found: FamilyMatch, registry: MegatronMappingRegistry, names: Mapping[str, str]) -> None:
    for name, stored in names.items():
        mapping = registry.hf_to_megatron_lookup(name)
        if mapping is not None:
            found.megatron_names[stored] = mapping.megatron_param
        reason = registry.drop_reason(name)
        if mapping is None and reason is not None:
            found.dropped[stored] = reason
        elif mapping is None and category(stored) in OTHER_MODALITIES:
            found.of_encoders.append(stored)
        elif mapping is None:
            found.unmatched.append(stored)
    if not found.is_supported:
        present = {_DIGITS.sub("*", name) for name in names}
        patterns = {_DIGITS.sub("*", name) for mapping in registry for name in mapping.hf_names.values()}
        found.absent = sorted(patterns - present)


class _ConfigOfFamily:
    """The fields of a model, and for those that it lacks the defaults of a family's own config class."""

    def __init__(self, config: LeveledConfig, defaults: Any) -> None:
        self._config, self._defaults = config, defaults

    def __getattr__(self, name: str) -> Any:
        if name == "tie_word_embeddings" and (tied := self._config.top(name)) is not None:
            return tied.value
        stated = at_level(self._config.values, self._config.text_level or ()).get(name)
        if isinstance(stated, int | float | str):
            return stated
        text = self._config.text_config
        with suppress(AttributeError, ValueError):  # ValueError: a field that differs between layers
            return getattr(text, name)
        fact = self._config.text(name)
        return getattr(self._defaults, name) if fact is None else fact.value


def _provider_fields(parts: Parts, config: LeveledConfig) -> dict[str, Any]:
    """The provider fields that parts read from a model's config, whatever of it they can read."""
    tables, view = combined(parts), _ConfigOfFamily(config, None)
    fields = {**tables.defaults, **mapped_fields(view, tables.same)}
    for part in in_force(parts) if facts.num_layers(config) else ():
        if part.to_provider is not None:
            with suppress(*_UNREADABLE):
                fields |= part.to_provider(view)
    return fields


def _registry(entry: RegisteredBridge, config: LeveledConfig) -> MegatronMappingRegistry | None:
    """A family's rules for a model's config; `None` if they cannot be made of its fields."""
    predicted = config.text("num_nextn_predict_layers")
    if predicted is not None and not (type(predicted.value) is int and 0 <= predicted.value <= _MOST_PREDICTED):
        return None
    bridge = entry.bridge_class()
    bridge.hf_config = _ConfigOfFamily(config, _defaults(entry))  # type: ignore[assignment]
    try:
        return bridge.registry()
    except _UNREADABLE:
        return None


def _defaults(entry: RegisteredBridge) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if entry.model_type is None or entry.model_type not in CONFIG_MAPPING:
        return None
    config_class: Any = CONFIG_MAPPING[entry.model_type]
    return _default(config_class)


def _nearest(
    config: LeveledConfig, bridges: Mapping[str, RegisteredBridge], names: list[str]
) -> RegisteredBridge | None:
    """The family whose fields and tensors are most like the model's: by the shares that both have of those of either.

    Tensors count twice: they show what is computed, fields how it is called. A text model of the family's own
    `model_type` is as near as its tensors are.
    """
    if config.text_level is None or config.kind == "other":
        return None
    stated = {name for name, value in at_level(config.values, config.text_level).items() if value is not None}
    stated |= {"rope_parameters"} if stated & {"rope_theta", "rope_scaling"} else set()
    stated -= IRRELEVANT_FIELDS.keys()

    def by_fields(entry: RegisteredBridge) -> float:
        bridge = entry.bridge_class
        wanted = {*dict(bridge.CONFIG_MAPPING), *bridge.CONFIG_CHECKED}
        return len(stated & fields_of(entry)) / len(stated | wanted)

    scores = {entry.architecture: by_fields(entry) for entry in bridges.values()}
    model_type = at_level(config.values, config.text_level).get("model_type")
    for entry in bridges.values():
        scores[entry.architecture] += model_type is not None and entry.model_type == model_type
    closest = sorted(bridges.values(), key=lambda entry: (-scores[entry.architecture], entry.architecture))
    present = {_DIGITS.sub("*", name): name for name in names}
    for entry in closest if present else ():
        registry = _registry(entry, config)
        if registry is None:
            continue
        rules = {_DIGITS.sub("*", name) for rule in registry.entries for name in _hf_names(rule)}
        needed = {_DIGITS.sub("*", name) for rule in registry for name in rule.hf_names.values()}
        scores[entry.architecture] += 2 * len(present.keys() & rules) / len(present.keys() | needed)
    return max(closest, key=lambda entry: scores[entry.architecture], default=None)


def _hf_names(rule: Any) -> list[str]:
    return [rule.hf_param] if isinstance(rule, Dropped) else list(rule.hf_names.values())
