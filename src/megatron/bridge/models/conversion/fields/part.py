"""`Part`: a group of config fields in both directions, from a Hugging Face config to a provider and back.

A family's config is a tuple of parts. What a bridge reads, writes, refuses and knows is derived from them, so each
fact is stated once. Parts need no torch: `inspect` reads a config with the same parts as a conversion.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.errors import UnsupportedConfigError

HFConfig = Any  # a config of transformers, whose fields differ from class to class
Provider = Any  # likewise, a provider
FieldMapping = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """A group of config fields, in both directions.

    Attributes:
        same: HF field -> provider field (or fields) with the same value.
        reads: HF fields that `to_provider` reads, and that `to_hf` may give.
        irrelevant: HF fields that do not change the computation, each with the reason.
        fixed: HF fields that must have this value or none, because nothing else can be represented.
        defaults: provider fields that have this value in every model.
        to_provider: provider fields that take more than copying; raises `UnsupportedConfigError`.
        to_hf: the inverse of `to_provider`. What is neither in `reads` nor in `same` is left out, so that one function
            serves config classes with more or fewer fields.
    """

    same: FieldMapping = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    irrelevant: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    to_provider: Callable[[HFConfig], dict[str, Any]] | None = None
    to_hf: Callable[[Provider], dict[str, Any]] | None = None

    @property
    def names(self) -> set[str]:
        """All HF fields that the part is about."""
        return {*self.same, *self.reads, *self.irrelevant, *self.fixed}


Parts = tuple[Part, ...]


def same(*names: str, **renamed: str | tuple[str, ...]) -> Part:
    """HF fields whose values a provider has as they are.

    Args:
        names: fields that have the same name on both sides.
        renamed: HF field -> provider field (or fields).

    Example:
        >>> same("mlp_bias", attention_bias=("add_qkv_bias", "attention_output_bias")).same["mlp_bias"]
        'mlp_bias'
    """
    return Part(same={**{name: name for name in names}, **renamed})


def converted(hf_field: str, field: str, to_provider: Callable[[Any], Any], to_hf: Callable[[Any], Any]) -> Part:
    """An HF field whose value a provider has in another form.

    Args:
        field: of the provider.
        to_provider, to_hf: give the value of one side for that of the other.

    Example:
        >>> scaling = converted("logits_scaling", "logits_multiplier", lambda x: 1 / x, lambda x: 1 / x)
    """
    return Part(
        reads=(hf_field,),
        to_provider=lambda hf_config: {field: to_provider(getattr(hf_config, hf_field))},
        to_hf=lambda provider: {hf_field: to_hf(getattr(provider, field))},
    )


def irrelevant(reason: str, *names: str) -> Part:
    """HF fields that do not change the computation, for one reason.

    Example:
        >>> irrelevant("generation", "use_cache", "num_logits_to_keep").irrelevant["use_cache"]
        'generation'
    """
    return Part(irrelevant=dict.fromkeys(names, reason))


def not_read(*names: str) -> Part:
    """HF fields of published configs that transformers' model leaves unread."""
    return irrelevant("transformers does not read it", *names)


def turned_into(name: str, *older: str) -> Part:
    """Older HF fields, from which transformers makes another that a part reads."""
    return irrelevant(f"transformers turns it into {name}", *older)


def fixed(**values: Any) -> Part:
    """HF fields that must have one value, or none."""
    return Part(fixed=values)


def defaults(**fields: Any) -> Part:
    """Provider fields that have the same value in every model of a family."""
    return Part(defaults=fields)


def combined(parts: Iterable[Part]) -> Part:
    """The tables of several parts as one. Where two parts are about the same field, the later one is right."""
    mapping: dict[str, str | tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    values: dict[str, Any] = {}
    provider_defaults: dict[str, Any] = {}
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
    """The parts whose functions count: those of which no later part states all that they read."""
    return [
        part
        for index, part in enumerate(parts)
        if not part.reads or not any(set(part.reads) <= later.names for later in parts[index + 1 :])
    ]


def provider_fields(hf_config: HFConfig, parts: Parts, mapping: FieldMapping) -> dict[str, Any]:
    """The provider fields that a config gives, less those that are the same in every model.

    Args:
        mapping: of the fields that are the same on both sides.

    Raises:
        UnsupportedConfigError: a value that cannot be represented.
    """
    fields = mapped_fields(hf_config, mapping)
    for part in in_force(parts):
        if part.to_provider is not None:
            fields |= part.to_provider(hf_config)
    return fields


def hf_fields(provider: Provider, parts: Parts, mapping: FieldMapping) -> dict[str, Any]:
    """The inverse of `provider_fields`.

    Raises:
        UnsupportedConfigError: a provider that no HF config of this family describes.
    """
    values = mapped_values(provider, mapping)
    for part in in_force(parts):
        if part.to_hf is not None:
            own = {*part.reads, *part.same}
            values |= {name: value for name, value in part.to_hf(provider).items() if name in own}
    return values


def mapped_fields(hf_config: HFConfig, mapping: FieldMapping) -> dict[str, Any]:
    """The provider fields that equal an HF field. A field that is `None` keeps the provider's default."""
    fields: dict[str, Any] = {}
    for name, targets in mapping.items():
        value = getattr(hf_config, name, None)
        if value is not None:
            fields |= dict.fromkeys((targets,) if isinstance(targets, str) else targets, value)
    return fields


def mapped_values(provider: Provider, mapping: FieldMapping) -> dict[str, Any]:
    """The inverse of `mapped_fields`."""
    return {
        name: getattr(provider, targets if isinstance(targets, str) else targets[0])
        for name, targets in mapping.items()
    }


def check_values(hf_config: HFConfig, allowed: Mapping[str, Collection[Any]]) -> None:
    """Raises `UnsupportedConfigError` naming every field whose value is not among the allowed ones."""
    problems = [
        f"{name}: expected {' or '.join(map(repr, values))}, found {getattr(hf_config, name)!r}"
        for name, values in allowed.items()
        if getattr(hf_config, name) not in values
    ]
    if problems:
        raise UnsupportedConfigError(f"this cannot be represented exactly: {'; '.join(problems)}")


def check_fields(hf_config: HFConfig, known: Collection[str], fixed_values: Mapping[str, Any]) -> None:
    """Raises `UnsupportedConfigError` naming every unknown field, and every fixed field with another value."""
    problems = []
    for name, value in hf_config.to_dict().items():
        if name in fixed_values:
            if value is not None and value != fixed_values[name]:
                problems.append(f"{name}: expected {fixed_values[name]!r}, found {value!r}")
        elif name not in known and value is not None:
            problems.append(f"{name} = {value!r}: unknown to this family")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedConfigError(
            f"the config asks for something that cannot be represented exactly:\n{lines}\n"
            "If a field does not change the computation (transformers ignores it too), remove it from config.json; "
            "otherwise the family needs to learn it."
        )
