"""Which family of this package a model belongs to, and what that family knows of its config and its tensors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple, cast

from megatron.bridge.discovery import facts
from megatron.bridge.discovery.config_levels import TOP_LEVEL, LeveledConfig, at_level
from megatron.bridge.discovery.weights import OTHER_MODALITIES, category
from megatron.bridge.models.conversion.fields.common import DECODER, FIXED_FIELDS, IRRELEVANT_FIELDS
from megatron.bridge.models.conversion.fields.part import combined, in_force, mapped_fields
from megatron.bridge.models.conversion.fields.unread import declares, objection
from megatron.bridge.models.conversion.param_mapping import Dropped
from megatron.bridge.models.conversion.registered import (
    NOT_REPRESENTABLE,
    RegisteredBridge,
    is_of_whole_model,
    registered_bridges,
    supported_architecture,
)
from megatron.bridge.models.conversion.stored_names import ModuleTensor, as_stored, transformers_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.param_mapping import MegatronParamMapping

# Fields that this package, or transformers' config classes, read for every model.
_ALWAYS_KNOWN = {*IRRELEVANT_FIELDS, *FIXED_FIELDS}
_READ_WITH_ROPE = ("rope_parameters", "rope_theta", "rope_scaling")
_ROPE_FIELDS = {
    "rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "long_factor", "short_factor", "attention_factor", "beta_fast",
    "beta_slow", "mscale", "mscale_all_dim", "truncate", "alpha",
    "full_attention", "sliding_attention", "llama_4_scaling_beta", "max_position_embeddings",
}  # fmt: skip
_ROPE_PREFIXES = ("rope_parameters.", "rope_scaling.")
_TOKEN = re.compile(r".*_token(_id|_ids|_index)?|.*_token_id_\w+")
# How the names of the text model's tensors begin in a VLM.
_TEXT_PREFIX = re.compile(r"^(?:model\.|thinker\.)*(?:language_model|text_model|llm)\.(?:model\.)?|^thinker\.model\.")
_MOST_PREDICTED = 1_000  # prediction layers, each of which has rules of its own
# What may be raised when a config lacks a field, or when a value is not of the kind that a family expects.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_DIGITS = re.compile(r"\d+|\*+")


class UnknownField(NamedTuple):
    """A field of the config that is not known to every family.

    Attributes:
        level: the level that states it, or "default of" a config class.
        known_to: architectures that know it; if there are none and transformers may read it, the field is probably that
            of a new block.
        in_transformers: whether transformers' config class declares it, so that its modeling file reads it.
    """

    name: str
    value: object
    level: str
    known_to: tuple[str, ...]
    in_transformers: bool


class RefusedValue(NamedTuple):
    """A field for which the family supports a single value, and which has another."""

    name: str
    expected: object
    found: object


@dataclass
class FamilyMatch:
    """The family of a model, or the nearest one.

    Attributes:
        entry: its entry in the table of architectures.
        registry: its rules for this model; `None` if they cannot be made from the config.
        fields: the provider fields that its parts read from the config. What they cannot read is left out; what only
            other families know is read by these families' parts.
        is_supported: whether the model's architecture is one of the table.
        reason: why it is not, or why it cannot be.
        unknown_fields: fields that no family knows, and that transformers may read.
        foreign_fields: fields that other families know, but this one does not.
        encoder_fields: fields of a VLM's top level that transformers' class reads for the encoder and the projector.
        not_read: fields that this family does not know, and that transformers provably does not read.
        refused: values that this family cannot represent.
        unmatched: tensors without a rule.
        of_encoders: tensors of encoders and projectors, for which the text model's family needs no rule.
        megatron_names: the Megatron weight of each HF tensor that has a rule.
        dropped: tensors that are left out on purpose, with the reason.
        absent: for the nearest family, patterns of tensors that it has but the model does not.
    """

    entry: RegisteredBridge | None = None
    registry: MegatronMappingRegistry | None = None
    fields: dict[str, object] = field(default_factory=dict)
    is_supported: bool = False
    reason: str | None = None
    unknown_fields: list[UnknownField] = field(default_factory=list)
    foreign_fields: list[UnknownField] = field(default_factory=list)
    encoder_fields: list[UnknownField] = field(default_factory=list)
    not_read: list[UnknownField] = field(default_factory=list)
    refused: list[RefusedValue] = field(default_factory=list)
    of_encoders: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    megatron_names: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def match_family(config: LeveledConfig, names: Iterable[str]) -> FamilyMatch:
    """The family that supports a model, or else the one whose config fields and tensor names are nearest to it.

    Args:
        names: HF names of the model's tensors, those of encoders included.
    """
    names = list(names)
    bridges = registered_bridges()
    stated = config.values.get("architectures")
    architectures = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    family = FamilyMatch()
    supported = supported_architecture(architectures, config.values.get("model_type"))
    family.entry = None if supported is None else bridges[supported]
    family.is_supported = family.entry is not None
    text_names = {text_name(name): name for name in names}
    if family.entry is None:
        refused = next((name for name in architectures if name in NOT_REPRESENTABLE), None)
        if refused is not None:
            family.reason = f"{refused} cannot be converted: {NOT_REPRESENTABLE[refused]}"
        else:
            family.reason = f"no bridge for architecture {', '.join(architectures) or 'none'}"
        own_names = [name for name in text_names if category(name) not in OTHER_MODALITIES]
        family.entry = _nearest(config, bridges, own_names)
    family.fields = _provider_fields(family.entry, config)
    _compare_fields(family, config, bridges)
    if family.entry is not None:
        family.registry = _registry(family.entry, config)
        if names and family.registry is not None:
            if family.is_supported:
                where = partial(_where_in_transformers, config)
                family.registry = as_stored(family.registry, text_names, where, family.entry.architecture)
            _apply_rules(family, family.registry, text_names)
    return family


def text_name(name: str) -> str:
    """The name that a tensor of a VLM's text model has in a checkpoint of the text model alone."""
    short = _TEXT_PREFIX.sub("model.", name)
    return short.removeprefix("model.") if short.startswith("model.lm_head") else short


def _where_in_transformers(config: LeveledConfig, names: Collection[str]) -> dict[str, ModuleTensor]:
    """See `transformers_names`, which needs torch: where this process has none, another one is asked."""
    given = str(at_level(config.values, config.text_level or ()).get("model_type")), sorted(names)
    if "torch" in sys.modules:
        return transformers_names(*given)
    code = f"import json, sys; from {transformers_names.__module__} import transformers_names as f; "
    command = [sys.executable, "-c", f"{code}print(json.dumps(f(*json.load(sys.stdin))))"]
    result = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    found = json.loads(result.stdout) if result.returncode == 0 else {name: (name, None) for name in names}
    return {name: ModuleTensor(*tensor) for name, tensor in found.items()}


def fields_of(entry: RegisteredBridge) -> set[str]:
    """The config fields that a family knows."""
    bridge = entry.bridge_class
    return {*dict(bridge.CONFIG_MAPPING), *bridge.CONFIG_CHECKED, *bridge.CONFIG_IRRELEVANT, *bridge.CONFIG_FIXED}


def _compare_fields(family: FamilyMatch, config: LeveledConfig, bridges: Mapping[str, RegisteredBridge]) -> None:
    known_to: dict[str, list[str]] = {}
    for entry in bridges.values():
        for name in fields_of(entry):
            known_to.setdefault(name, []).append(entry.architecture)
    own = combined(DECODER).names if family.entry is None else fields_of(family.entry)
    for unknown in _unknown_fields(config, known_to):
        if config.text_level and unknown.level == TOP_LEVEL and unknown.in_transformers:
            family.encoder_fields.append(unknown)
        elif unknown.name in own or (unknown.known_to and unknown.value is None):
            continue
        elif _is_unread(config, unknown):
            family.not_read.append(unknown)
        elif not unknown.known_to:
            family.unknown_fields.append(unknown)
        else:
            family.fields |= _read_by_others(unknown.name, config, bridges)
            if family.entry is not None:
                family.foreign_fields.append(unknown)
    if family.entry is None:
        return
    if family.is_supported and config.loaded is not None and is_of_whole_model(config.loaded, family.entry):
        found = config.loaded.model_type
        family.refused.append(RefusedValue("model_type", family.entry.model_type, found))
    for name, expected in {**FIXED_FIELDS, **family.entry.bridge_class.CONFIG_FIXED}.items():
        fact = config.text(name)
        if fact is not None and fact.value is not None and fact.value != expected:
            family.refused.append(RefusedValue(name, expected, fact.value))


def _unknown_fields(config: LeveledConfig, known_to: Mapping[str, list[str]]) -> list[UnknownField]:
    """All fields, stated or defaults of transformers' class, that are not known to every family."""
    unknown: list[UnknownField] = []
    text_level = config.text_level or ()
    own_level = ".".join(text_level) or TOP_LEVEL

    def add(name: str, value: object, level: str, loaded: PretrainedConfig | None) -> None:
        if name not in always_known:
            families = tuple(known_to.get(name, ())) if level == own_level or level.startswith("default") else ()
            unknown.append(UnknownField(name, value, level, families, _declares(loaded, name)))

    text = config.text_config
    has_rope = text is None or declares(type(text), "rope_parameters")
    always_known = {*_ALWAYS_KNOWN, *(_READ_WITH_ROPE if has_rope else ())}
    stated = at_level(config.values, text_level)
    parts = {name for name, value in config.values.items() if isinstance(value, Mapping) and name.endswith("_config")}
    aliases: Mapping[str, str] = getattr(type(text), "attribute_map", {})
    for name, value in stated.items():
        is_wrapper = not text_level and config.kind != "LLM" and (name in parts or _TOKEN.fullmatch(name))
        is_alias = name in aliases.values() or name in aliases
        if not is_wrapper and not (is_alias and not known_to.get(name)):
            add(name, value, own_level, text)
    for name, value in (text.to_dict() if text is not None else {}).items():
        if name not in stated and value is not None:
            add(name, value, f"default of {type(text).__name__}", text)
    for rope in ("rope_parameters", "rope_scaling"):
        parameters = stated.get(rope)
        for name, value in parameters.items() if isinstance(parameters, Mapping) else ():
            if name not in _ROPE_FIELDS:
                unknown.append(UnknownField(f"{rope}.{name}", value, own_level, (), False))
    if text_level:
        for name, value in config.values.items():
            if name not in parts and not _TOKEN.fullmatch(name) and name != "tie_word_embeddings":
                add(name, value, TOP_LEVEL, config.loaded)
    if config.vision_level is not None:
        vision = _vision_config(config)
        for name, value in at_level(config.values, config.vision_level).items():
            if not _declares(vision, name):
                add(name, value, ".".join(config.vision_level), vision)
    return unknown


def _is_unread(config: LeveledConfig, unknown: UnknownField) -> bool:
    """Whether transformers provably does not read a field: its class drops it, or `objection` has none."""
    part = config.text_config
    if unknown.level == ".".join(config.vision_level or ("no vision",)):
        part = _vision_config(config)
    elif unknown.level == TOP_LEVEL:
        part = config.loaded
    if part is None or unknown.in_transformers or unknown.name.startswith(_ROPE_PREFIXES):
        return False
    return unknown.name not in part.to_dict() or not objection(part, unknown.name, unknown.value, config.loaded)


def _vision_config(config: LeveledConfig) -> PretrainedConfig | None:
    part = getattr(config.loaded, config.vision_level[-1], None) if config.vision_level else None
    return part if hasattr(part, "to_dict") else None


def _declares(loaded: PretrainedConfig | None, name: str) -> bool:
    """Whether a config class of transformers has a field, rather than accepting any that it is given."""
    if loaded is None:
        return False
    make: Callable[[], PretrainedConfig] = type(loaded)
    return declares(type(loaded), name) or hasattr(_default(make), name)


@cache
def _default(make: Callable[[], PretrainedConfig]) -> PretrainedConfig | None:
    """A config that consists of defaults; `None` if its class needs arguments."""
    try:
        return make()
    except _UNREADABLE:
        return None


def _apply_rules(family: FamilyMatch, registry: MegatronMappingRegistry, names: Mapping[str, str]) -> None:
    for name, stored in names.items():
        mapping = registry.hf_to_megatron_lookup(name)
        if mapping is not None:
            family.megatron_names[stored] = mapping.megatron_param
        reason = registry.drop_reason(name)
        if mapping is None and reason is not None:
            family.dropped[stored] = reason
        elif mapping is None and category(stored) in OTHER_MODALITIES:
            family.of_encoders.append(stored)
        elif mapping is None:
            family.unmatched.append(stored)
    if not family.is_supported:
        present = {_DIGITS.sub("*", name) for name in names}
        patterns = {_DIGITS.sub("*", name) for mapping in registry for name in mapping.hf_names.values()}
        family.absent = sorted(patterns - present)


class _ConfigForFamily:
    """The fields of a model's config under the names of a family's config class.

    Args:
        own: a config of that class, if there is one.
        with_defaults: whether its values count where the model has none.
    """

    def __init__(self, config: LeveledConfig, own: PretrainedConfig | None, with_defaults: bool) -> None:
        self._config, self._defaults = config, own if with_defaults else None
        self._aliases: Mapping[str, str] = getattr(type(own), "attribute_map", {})

    def __getattr__(self, name: str) -> object:
        if name == "tie_word_embeddings" and (tied := self._config.top(name)) is not None:
            return tied.value
        stated = at_level(self._config.values, self._config.text_level or ())
        written = name if name in stated else self._aliases.get(name, name)
        value = stated.get(written)
        if isinstance(value, int | float | str):
            return value
        text = self._config.text_config
        with suppress(AttributeError, ValueError):  # ValueError: a field that differs between layers
            return getattr(text, name)
        fact = self._config.text(written)
        return getattr(self._defaults, name) if fact is None else fact.value


def _for_family(
    config: LeveledConfig, entry: RegisteredBridge | None, *, with_defaults: bool = False
) -> PretrainedConfig:
    own = _own_config(entry) if entry is not None and (with_defaults or config.loaded is None) else None
    return cast("PretrainedConfig", _ConfigForFamily(config, own, with_defaults))


def _provider_fields(entry: RegisteredBridge | None, config: LeveledConfig) -> dict[str, object]:
    """The provider fields that a family's parts read from a model's config, as far as they can read it."""
    parts = DECODER if entry is None else entry.bridge_class.CONFIG
    tables, view = combined(parts), _for_family(config, entry)
    fields = {**tables.defaults, **mapped_fields(view, tables.same)}
    for part in in_force(parts) if facts.num_layers(config) else ():
        if part.to_provider is not None:
            with suppress(*_UNREADABLE):
                fields |= part.to_provider(view)
    return fields


def _read_by_others(name: str, config: LeveledConfig, bridges: Mapping[str, RegisteredBridge]) -> dict[str, object]:
    """The provider fields that an HF field gives, by the first part of any family that reads it."""
    view = _for_family(config, None)
    for part in (part for entry in bridges.values() for part in in_force(entry.bridge_class.CONFIG)):
        if name in part.same:
            return mapped_fields(view, {name: part.same[name]})
        if name in part.reads and part.to_provider is not None and facts.num_layers(config):
            with suppress(*_UNREADABLE):
                return part.to_provider(view)
    return {}


def _registry(entry: RegisteredBridge, config: LeveledConfig) -> MegatronMappingRegistry | None:
    """A family's rules for a model's config; `None` if they cannot be made from its fields."""
    predicted = config.text("num_nextn_predict_layers")
    if predicted is not None and not (type(predicted.value) is int and 0 <= predicted.value <= _MOST_PREDICTED):
        return None
    bridge = entry.bridge_class()
    bridge.hf_config = _for_family(config, entry, with_defaults=True)
    try:
        return bridge.registry()
    except _UNREADABLE:
        return None


def _own_config(entry: RegisteredBridge) -> PretrainedConfig | None:
    """A config of the family's own class, with its defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if entry.model_type is None or entry.model_type not in CONFIG_MAPPING:
        return None
    make: Callable[[], PretrainedConfig] = CONFIG_MAPPING[entry.model_type]
    return _default(make)


def _nearest(
    config: LeveledConfig, bridges: Mapping[str, RegisteredBridge], names: list[str]
) -> RegisteredBridge | None:
    """The family whose fields and tensors are most like the model's.

    What counts is the share of those that both have among those that either has. Tensors count twice, because they
    show what is computed, whereas fields show what it is called. If the text model's `model_type` is the family's own,
    that counts half as much as all tensors together.
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
    present = {_DIGITS.sub("*", name) for name in names}
    for entry in closest if present else ():
        registry = _registry(entry, config)
        if registry is None:
            continue
        rules = {_DIGITS.sub("*", name) for rule in registry.entries for name in _hf_names(rule)}
        needed = {_DIGITS.sub("*", name) for rule in registry for name in rule.hf_names.values()}
        scores[entry.architecture] += 2 * len(present & rules) / len(present | needed)
    return max(closest, key=lambda entry: scores[entry.architecture], default=None)


def _hf_names(rule: MegatronParamMapping | Dropped) -> list[str]:
    return [rule.hf_param] if isinstance(rule, Dropped) else list(rule.hf_names.values())
