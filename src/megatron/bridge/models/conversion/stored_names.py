"""The names that a checkpoint's tensors have, where they are not those of the family's mappings.

transformers reads more than the names that a family publishes: those of the base model (without `model.`, or with it
twice), those of its own modules (which tools write that save a model's state without `save_pretrained`), and older
ones. Its rules are its own (`transformers.conversion_mapping`): they turn any name into that of a module's tensor. A
stored tensor is what a mapping asks for if both names become the same one.

The rules also join experts: transformers holds one tensor for all experts of a layer, whose rows and columns are those
of the separate tensors.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion import param_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry

type Entry = param_mapping.MegatronParamMapping | param_mapping.Dropped
# Finds what is stored under each name, as `transformers_names` does.
type Rename = Callable[[Collection[str]], Mapping[str, ModuleTensor]]

_NUMBER = re.compile(r"(?<=\.)(\d+|\*)(?=\.|$)")
# What tools put in front of every name, or into some, when they save a model inside another; transformers reads none.
_FOREIGN = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "module.": ("a wrapper for data parallelism", "model.module"),
    "_fsdp_wrapped_module.": ("FSDP", "accelerator.unwrap_model(model)"),
    "base_model.model.": ("peft", "model.merge_and_unload()"),
    ".lora_A.": ("peft", "model.merge_and_unload()"),
}


class ModuleTensor(NamedTuple):
    """A tensor of transformers' modules, or a part of one.

    Attributes:
        name: the tensor.
        part: what distinguishes the part from others; `None` for the whole tensor.
    """

    name: str
    part: str | None


def as_stored(
    registry: MegatronMappingRegistry, hf_names: Collection[str], rename: Rename, model_name: str
) -> MegatronMappingRegistry:
    """The registry, with the names that the checkpoint has for its tensors.

    Args:
        registry: the family's mappings.
        hf_names: the names of the checkpoint's tensors.
        rename: called only if some name is unknown, with names that have `*` in place of numbers.
        model_name: the name of the model, for errors.

    Raises:
        CheckpointError: the names are those of another model that wraps this one.
    """
    stored = {_pattern(name): name for name in hf_names}
    unknown = [pattern for pattern, name in stored.items() if not _is_known(registry, name)]
    if not unknown:
        return _with_stored_copies(registry, hf_names)
    _check_foreign(unknown, stored, model_name)
    asked = {_pattern(name) for entry in registry.entries for name in _names(entry)}
    renamed = rename(sorted({*asked, *stored}))
    wanted = {renamed[pattern].name for pattern in asked}
    prefix = _prefix(registry, renamed)
    by_tensor = {_in_module(pattern, renamed[pattern], wanted, prefix): pattern for pattern in stored}

    def find(name: str) -> str:
        """The stored name of what a mapping calls `name`, with its wildcards; `name` itself if it is not stored."""
        pattern = _pattern(name)
        tensor = renamed[pattern]
        whole = by_tensor.get(ModuleTensor(tensor.name, None), pattern)
        found = pattern if pattern in stored else by_tensor.get(tensor, whole)
        numbers = iter(_NUMBER.findall(name))
        return _NUMBER.sub(lambda _: next(numbers, "*"), found)

    renamed_registry = MegatronMappingRegistry(*(_renamed(entry, find) for entry in registry.entries))
    return _with_stored_copies(renamed_registry, hf_names)


def _with_stored_copies(registry: MegatronMappingRegistry, hf_names: Collection[str]) -> MegatronMappingRegistry:
    """The registry, reading the copy of a tied tensor where only that is stored, as transformers does.

    Tools that store each tensor once may keep `lm_head.weight` rather than the embedding, which comes later by name.
    """
    only = {same_as: copy for copy, same_as in registry.tied().items() if copy in hf_names and same_as not in hf_names}
    if not only:
        return registry
    entries = [
        entry for entry in registry.entries if not (isinstance(entry, param_mapping.Tied) and entry.same_as in only)
    ]
    return MegatronMappingRegistry(*(_renamed(entry, lambda name: only.get(name, name)) for entry in entries))


def transformers_names(model_type: str, names: Collection[str]) -> dict[str, ModuleTensor]:
    """Where transformers puts tensors that it loads, for any names that it reads.

    What only `from_pretrained` knows, the prefix, stays as it is.

    `transformers_names("mixtral", ["layers.*.block_sparse_moe.gate.weight"])` finds `layers.*.mlp.gate.weight`.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = [rule for name in (model_type, "legacy") for rule in get_checkpoint_conversion_mapping(name) or ()]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    return {name: ModuleTensor(*rename_source_key(name, renamings, converters)) for name in names}


def _is_known(registry: MegatronMappingRegistry, name: str) -> bool:
    return registry.hf_to_megatron_lookup(name) is not None or registry.drop_reason(name) is not None


def _pattern(name: str) -> str:
    """The name with `*` in place of the numbers of layers and experts."""
    return _NUMBER.sub("*", name)


def _names(entry: Entry) -> Iterable[str]:
    return [entry.hf_param] if isinstance(entry, param_mapping.Dropped) else entry.hf_names.values()


def _prefix(registry: MegatronMappingRegistry, renamed: Mapping[str, ModuleTensor]) -> str:
    """How the names of the base model's tensors begin in the model: as that of the embedding, such as "model."."""
    mapping = registry.megatron_to_hf_lookup("embedding.word_embeddings.weight")
    name = renamed[next(iter(mapping.hf_names.values()))].name if mapping is not None else ""
    return name[: name.find(".") + 1]


def _in_module(pattern: str, tensor: ModuleTensor, wanted: set[str], prefix: str) -> ModuleTensor:
    """The tensor, with the prefix added or removed as `transformers.core_model_loading` does."""
    if tensor.name not in wanted and pattern in wanted:
        return ModuleTensor(pattern, None)
    shorter, longer = tensor.name.removeprefix(prefix), prefix + tensor.name
    return tensor._replace(name=next((name for name in (shorter, longer) if name in wanted), tensor.name))


def _renamed(entry: Entry, find: Callable[[str], str]) -> Entry:
    """The entry under stored names; experts that are stored in one tensor are mapped from that."""
    names = [find(name) for name in _names(entry)]
    if isinstance(entry, param_mapping.Tied):
        return param_mapping.Tied(names[0], find(entry.same_as))
    if isinstance(entry, param_mapping.Dropped):
        return entry.for_name(names[0])
    if len(_NUMBER.findall(names[0])) < len(_NUMBER.findall(next(iter(_names(entry))))):  # no wildcard for the expert
        is_gated = isinstance(entry, param_mapping.GatedMLPMapping)
        fused = param_mapping.FusedGatedExpertMapping if is_gated else param_mapping.FusedExpertMapping
        return fused(entry.megatron_param, names[0])
    renamed = entry.resolve("*" * len(_NUMBER.findall(entry.megatron_param)))
    renamed.hf_param = names[0] if isinstance(entry.hf_param, str) else dict(zip(entry.hf_names, names, strict=True))
    return renamed


def _check_foreign(unknown: list[str], stored: Collection[str], model_name: str) -> None:
    for part, (tool, inner) in _FOREIGN.items():
        is_prefix = part[0] != "."
        found = [name for name in unknown if (name.startswith(part) if is_prefix else part in name)]
        if found and (not is_prefix or len(found) == len(stored)):
            raise CheckpointError(
                f"{model_name}: {'every tensor has a name that begins with' if is_prefix else 'tensors have'} {part!r} "
                f"({found[0]}): a model wrapped by {tool} was saved. transformers does not read these names either. "
                f"Save the model inside: `{inner}.save_pretrained(folder)`."
            )
