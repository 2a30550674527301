"""`Part`: a group of config fields in both directions, from a Hugging Face config to a provider and back.

A family's config is a tuple of parts. Which fields a bridge reads, writes, refuses and knows all follows from them, so
each fact is stated once. Parts need no torch: `inspect` reads a config with the same parts as a conversion.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.unread import objection

HFConfig = Any  # a transformers config, whose fields differ from class to class
Provider = Any  # likewise a provider
Values = dict[str, Any]  # the values of some fields of either, by name
FieldMapping = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """A group of config fields, in both directions.

    Attributes:
        same: HF field -> the provider field (or fields) with the same value.
        reads: HF fields that `to_provider` reads and `to_hf` may return.
        irrelevant: HF field -> why it does not change the computation.
        fixed: HF field -> the only value, apart from `None`, that can be represented.
        defaults: provider field -> its value in every model.
        to_provider: computes provider fields that are not mere copies; raises `UnsupportedConfigError`.
        to_hf: the inverse of `to_provider`. Fields that it returns but that are in neither `reads` nor `same` are left
            out, so that one function serves config classes with more or fewer fields.
    """

    same: FieldMapping = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    irrelevant: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    to_provider: Callable[[HFConfig], Values] | None = None
    to_hf: Callable[[Provider], Values] | None = None

    @property
    def names(self) -> set[str]:
        """All HF fields that the part mentions."""
        return {*self.same, *self.reads, *self.irrelevant, *self.fixed}


Parts = tuple[Part, ...]


def same(*names: str, **renamed: str | tuple[str, ...]) -> Part:
    """HF fields that have the same value in a provider.

    Args:
        names: fields with the same name on both sides.
        renamed: HF field -> provider field (or fields).

    Example:
        >>> same("mlp_bias", attention_bias=("add_qkv_bias", "attention_output_bias")).same["mlp_bias"]
        'mlp_bias'
    """
    return Part(same={**{name: name for name in names}, **renamed})


def converted(hf_field: str, field: str, to_provider: Callable[[Any], Any], to_hf: Callable[[Any], Any]) -> Part:
    """An HF field whose value has another form in a provider.

    Args:
        field: the provider's field.
        to_provider, to_hf: convert a value from one side to the other.

    Example: `scaling = converted("logits_scaling", "logits_multiplier", lambda x: 1 / x, lambda x: 1 / x)`
    """
    return Part(
        reads=(hf_field,),
        to_provider=lambda hf_config: {field: to_provider(getattr(hf_config, hf_field))},
        to_hf=lambda provider: {hf_field: to_hf(getattr(provider, field))},
    )


def irrelevant(reason: str, *names: str) -> Part:
    """HF fields that do not change the computation, all for the same reason.

    Example: `irrelevant("generation", "use_cache", "num_logits_to_keep").irrelevant["use_cache"]` is `'generation'`.
    """
    return Part(irrelevant=dict.fromkeys(names, reason))


def not_read(*names: str) -> Part:
    """HF fields that appear in published configs although transformers' model never reads them."""
    return irrelevant("transformers does not read it", *names)


def turned_into(name: str, *older: str) -> Part:
    """Older HF fields that transformers turns into the field `name`, which a part reads.

    Example:
        >>> turned_into("layer_types", "full_attention_interval").irrelevant["full_attention_interval"]
        'transformers turns it into layer_types'
    """
    return irrelevant(f"transformers turns it into {name}", *older)


def fixed(**values: object) -> Part:
    """HF fields that may only have one value, or `None`.

    Example: `fixed(scoring_func="sigmoid", moe_layer_freq=1).fixed["moe_layer_freq"]` is `1`.
    """
    return Part(fixed=values)


def defaults(**fields: object) -> Part:
    """Provider fields that have the same value in every model of a family.

    Example: `defaults(qk_layernorm=True, add_qkv_bias=True).defaults["qk_layernorm"]` is `True`.
    """
    return Part(defaults=fields)


def combined(parts: Iterable[Part]) -> Part:
    """The tables of several parts as one. Where two parts mention the same HF field, the later one counts.

    Example:
        >>> tables = combined([same("a", "b"), not_read("b")])
        >>> "b" in tables.same, "b" in tables.irrelevant
        (False, True)
    """
    mapping: dict[str, str | tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    values: dict[str, object] = {}
    provider_defaults: dict[str, object] = {}
    reads: dict[str, None] = {}
    for part in parts:
        for table in (mapping, reasons, values):
            for name in part.names & table.keys():
                del table[name]
        mapping |= part.same
        reasons |= part.irrelevant
        values |= part.fixed
        provider_defaults |= part.defaults
        reads |= dict.fromkeys(part.reads)
    return Part(mapping, tuple(reads), reasons, values, provider_defaults)


def in_force(parts: Parts) -> list[Part]:
    """The parts whose functions are called. A part is replaced if a later one mentions every field that it reads."""
    return [
        part
        for index, part in enumerate(parts)
        if not part.reads or not any(set(part.reads) <= later.names for later in parts[index + 1 :])
    ]


def provider_fields(hf_config: HFConfig, parts: Parts, mapping: FieldMapping) -> Values:
    """The provider fields that follow from an HF config, without the defaults.

    Args:
        mapping: the fields with the same value on both sides.

    Raises:
        UnsupportedConfigError: a value that cannot be represented.
    """
    fields = mapped_fields(hf_config, mapping)
    for part in in_force(parts):
        if part.to_provider is not None:
            fields |= part.to_provider(hf_config)
    return fields


def hf_fields(provider: Provider, parts: Parts, mapping: FieldMapping) -> Values:
    """The inverse of `provider_fields`.

    Raises:
        UnsupportedConfigError: no HF config of this family can describe the provider.
    """
    values = mapped_values(provider, mapping)
    for part in in_force(parts):
        if part.to_hf is not None:
            written = {*part.reads, *part.same}
            values |= {name: value for name, value in part.to_hf(provider).items() if name in written}
    return values


def mapped_fields(hf_config: HFConfig, mapping: FieldMapping) -> Values:
    """The provider fields that equal an HF field. Where that is `None`, the provider keeps its default."""
    fields: Values = {}
    for name, targets in mapping.items():
        value = getattr(hf_config, name, None)
        if value is not None:
            fields |= dict.fromkeys((targets,) if isinstance(targets, str) else targets, value)
    return fields


def mapped_values(provider: Provider, mapping: FieldMapping) -> Values:
    """The inverse of `mapped_fields`."""
    return {
        name: getattr(provider, targets if isinstance(targets, str) else targets[0])
        for name, targets in mapping.items()
    }


def check_values(hf_config: HFConfig, allowed: Mapping[str, Collection[object]]) -> None:
    """Raises `UnsupportedConfigError`, naming every field whose value is not among the allowed ones."""
    problems = [
        f"{name}: expected {' or '.join(map(repr, values))}, found {getattr(hf_config, name)!r}"
        for name, values in allowed.items()
        if getattr(hf_config, name) not in values
    ]
    if problems:
        raise UnsupportedConfigError(f"this cannot be represented exactly: {'; '.join(problems)}")


def check_fields(hf_config: HFConfig, known: Collection[str], fixed_values: Mapping[str, object]) -> Values:
    """The fields that are not known, but that transformers provably does not read.

    Raises:
        UnsupportedConfigError: any other unknown field, or a fixed field with another value; all are named.
    """
    problems, unread = [], {}
    for name, value in hf_config.to_dict().items():
        if name in fixed_values:
            if value is not None and value != fixed_values[name]:
                problems.append(f"{name}: expected {fixed_values[name]!r}, found {value!r}")
        elif name not in known and value is not None:
            if reason := objection(hf_config, name, value):
                problems.append(f"{name} = {value!r:.200}: unknown to this family; {reason}")
            else:
                unread[name] = value
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedConfigError(
            f"the config asks for something that cannot be represented exactly:\n{lines}\n"
            "If a field does not change the computation (transformers ignores it too), remove it from config.json; "
            "otherwise the family needs to learn it."
        )
    return unread
