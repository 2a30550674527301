"""Experts stored as transformers holds them in memory: one tensor for all experts of a layer, not one for each.

Published checkpoints have separate experts, and so does what `save_pretrained` writes, except with
`save_original_format=False` (transformers 5). Rows and columns are those of the separate tensors.
"""

import re
from collections.abc import Iterable

from megatron.bridge.models.conversion import param_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry

_EXPERT = re.compile(r"(.+\.mlp\.experts)\.\*\.(gate|up|down)_proj\.weight")
_GATE_UP, _DOWN = "gate_up_proj", "down_proj"


def as_stored(registry: MegatronMappingRegistry, hf_names: Iterable[str]) -> MegatronMappingRegistry:
    """The registry, with mappings of stacked instead of separate experts if that is how a checkpoint has them.

    Args:
        hf_names: the names of the checkpoint's tensors.
    """
    if not any(name.endswith(f".mlp.experts.{_GATE_UP}") for name in hf_names):
        return registry
    return MegatronMappingRegistry(*map(_stacked, registry.entries))


def _stacked(
    entry: param_mapping.MegatronParamMapping | param_mapping.Dropped,
) -> param_mapping.MegatronParamMapping | param_mapping.Dropped:
    if isinstance(entry, param_mapping.Dropped):
        name = None if isinstance(entry, param_mapping.Tied) else _stacked_name(entry.hf_param)
        return entry if name is None else entry.for_name(name)
    name = _stacked_name(next(iter(entry.hf_names.values())))
    if name is not None and isinstance(entry, param_mapping.GatedMLPMapping):
        return param_mapping.FusedGatedExpertMapping(entry.megatron_param, name)
    if name is not None and isinstance(entry, param_mapping.AutoMapping):
        return param_mapping.FusedExpertMapping(entry.megatron_param, name)
    return entry


def _stacked_name(hf: str) -> str | None:
    match = _EXPERT.fullmatch(hf)
    return match and f"{match[1]}.{_DOWN if match[2] == 'down' else _GATE_UP}"
