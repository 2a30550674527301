"""The registry of a model's mappings, with lookup by Megatron name and by HF name."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from megatron.bridge.models.conversion.param_mapping import Dropped, MegatronParamMapping, Tied, pattern_to_regex

_DIGITS = re.compile(r"\d+|\*+")

# A norm in front of a linear layer is a separate parameter in the local spec and part of the linear layer in the
# Transformer Engine spec. A norm behind it is part of the residual addition, and in checkpoints part of the linear
# layer. Mappings may use either name.
_NORM_ALIASES = (
    ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
    ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
    ("self_attention.q_layernorm.", "self_attention.linear_q_up_proj.layer_norm_"),
    ("self_attention.kv_layernorm.", "self_attention.linear_kv_up_proj.layer_norm_"),
    ("self_attn_bda.post_layernorm.", "self_attention.linear_proj.post_layernorm."),
    ("mlp_bda.post_layernorm.", "mlp.linear_fc2.post_layernorm."),
)


class MegatronMappingRegistry:
    """Mappings in order of precedence: the first whose pattern matches a name wins.

    Args:
        *mappings: parameter mappings, and `Dropped` marks for HF tensors that are left out on purpose.

    Attributes:
        entries: all arguments, for families that extend another's.
        mappings: the parameter mappings.
        dropped: the marks.

    Example:
        >>> registry = MegatronMappingRegistry(AutoMapping("decoder.layers.*.norm", "model.layers.*.ln"))
        >>> registry.megatron_to_hf_lookup("decoder.layers.3.norm").hf_param
        'model.layers.3.ln'
    """

    def __init__(self, *mappings: MegatronParamMapping | Dropped):
        self.entries = mappings
        self.mappings = [mapping for mapping in mappings if isinstance(mapping, MegatronParamMapping)]
        self.dropped = [mapping for mapping in mappings if isinstance(mapping, Dropped)]
        self._by_megatron = _PatternIndex[MegatronParamMapping]()
        self._by_hf = _PatternIndex[MegatronParamMapping]()
        for mapping in self.mappings:
            self._by_megatron.add(mapping.megatron_param, mapping)
            for name in mapping.hf_names.values():
                self._by_hf.add(name, mapping)
        self._drop_index = _PatternIndex[Dropped]()
        for mark in self.dropped:
            self._drop_index.add(mark.hf_param, mark)

    def __iter__(self) -> Iterator[MegatronParamMapping]:
        return iter(self.mappings)

    def __len__(self) -> int:
        return len(self.mappings)

    def get_all_mappings(self) -> list[MegatronParamMapping]:
        """All mappings, with their wildcards."""
        return list(self.mappings)

    def get_mappings_by_pattern(self, pattern: str) -> list[MegatronParamMapping]:
        """The mappings whose Megatron name matches `pattern`; `*` matches digits, `**` anything."""
        regex = re.compile(_glob(pattern))
        return [mapping for mapping in self.mappings if regex.fullmatch(mapping.megatron_param)]

    def megatron_to_hf_lookup(self, megatron_param: str) -> MegatronParamMapping | None:
        """The mapping of a Megatron parameter, without wildcards, or `None`. Norms are found by both their names."""
        # A GPTModel's prediction layer has one name as a module and another in checkpoints.
        key = megatron_param.replace(".mtp_model_layer.", ".transformer_layer.")
        for name in (megatron_param, key, *_aliases(megatron_param), *_aliases(key)):
            match = self._by_megatron.find(name)
            if match is not None:
                mapping, captures = match
                return mapping.resolve(captures)
        return None

    def hf_to_megatron_lookup(self, hf_param: str) -> MegatronParamMapping | None:
        """The mapping that reads an HF tensor, without wildcards, or `None`."""
        match = self._by_hf.find(hf_param)
        if match is None:
            return None
        mapping, captures = match
        return mapping.resolve(captures)

    def drop_reason(self, hf_param: str) -> str | None:
        """Why an HF tensor is left out on purpose; `None` if it is not."""
        mark = self.drop_mark(hf_param)
        return mark.reason if mark else None

    def drop_mark(self, hf_param: str) -> Dropped | None:
        """The mark by which an HF tensor is left out on purpose; `None` if it is not."""
        match = self._drop_index.find(hf_param)
        return match[0] if match else None

    def tied(self) -> dict[str, str]:
        """HF names of second copies, each with the name of the original that it must equal."""
        marks = {mark.hf_param: mark.same_as for mark in self.dropped if isinstance(mark, Tied)}

        def original(name: str) -> str:
            return original(marks[name]) if name in marks else name

        return {name: original(name) for name in marks}


def copies_by_original(tied: Mapping[str, str]) -> dict[str, list[str]]:
    """The inverse of `MegatronMappingRegistry.tied`: the names of each original's copies."""
    copies: dict[str, list[str]] = defaultdict(list)
    for name, same_as in tied.items():
        copies[same_as].append(name)
    return dict(copies)


class _PatternIndex[ValueT]:
    """Finds the first pattern that matches a name, trying only those with the name's shape.

    The shape of a name is the name with every number replaced, so that each of 50,000 expert weights is compared with a
    handful of patterns instead of all of them.
    """

    def __init__(self) -> None:
        self._patterns: dict[str, list[tuple[int, re.Pattern[str], ValueT]]] = defaultdict(list)
        self._anything: list[tuple[int, re.Pattern[str], ValueT]] = []
        self._size = 0

    def add(self, pattern: str, value: ValueT) -> None:
        entry = (self._size, pattern_to_regex(pattern), value)
        self._size += 1
        (self._anything if "**" in pattern else self._patterns[_DIGITS.sub("*", pattern)]).append(entry)

    def find(self, name: str) -> tuple[ValueT, tuple[str, ...]] | None:
        """The value of the first pattern that matches, and what its wildcards captured."""
        candidates = [*self._patterns.get(_DIGITS.sub("*", name), ()), *self._anything]
        for _, regex, value in sorted(candidates, key=lambda entry: entry[0]):
            match = regex.fullmatch(name)
            if match:
                return value, match.groups()
        return None


def _aliases(name: str) -> list[str]:
    pairs = (*_NORM_ALIASES, *((fused, separate) for separate, fused in _NORM_ALIASES))
    return [name.replace(f".{old}", f".{new}") for old, new in pairs if f".{old}" in name]


def _glob(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", r"(?:\d+|\*)")
