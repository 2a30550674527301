"""Mappings: a Megatron parameter, the HF tensors it is made of, and the layout between them.

A mapping names parameters; its layout is a pure function of shapes and numbers of heads. Which part of the weight a
rank holds is read from the model (see `placement`), so no mapping asks about tensor parallelism. The classes that name
a kind of parallelism exist because bridges elsewhere use them, and all stand for the same layout, the identity.
"""

import re
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Self

from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.transport.boxes import Shape

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig

HFParam = str | dict[str, str]

_WILDCARD = re.compile(r"\*\*|\*")
_LAYER_INDEX = re.compile(r"\.(\d+)\.")
_EXPERT_INDEX = re.compile(r"\d+$")
# The rows of these weights are the entries of the vocabulary, which Megatron pads.
VOCABULARY_WEIGHTS = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")


def padded_axis(name: str, config: "DecoderConfig") -> int | None:
    """The axis at whose end a Megatron weight may have padding for tensor parallelism, if there is one."""
    if name.endswith(VOCABULARY_WEIGHTS):
        return 0
    if config.unpadded_query_groups is None:
        return None
    axes = {"self_attention.linear_qkv.weight": 0, "self_attention.linear_qkv.bias": 0}
    axes["self_attention.linear_proj.weight"] = 1
    return next((axis for ending, axis in axes.items() if name.endswith(ending)), None)


class MegatronParamMapping:
    """Base class: a Megatron parameter and the HF tensor or tensors that it is made of. Names may be patterns.

    Args:
        megatron_param: the name in the Megatron model; `*` stands for digits, `**` for anything.
        hf_param: the HF name, or names by role. Its first wildcard stands for what the first wildcard of the Megatron
            name captured, and so on.
    """

    def __init__(self, megatron_param: str, hf_param: HFParam):
        self.megatron_param = megatron_param
        self.hf_param = hf_param
        num_wildcards = len(_WILDCARD.findall(megatron_param))
        for name in self.hf_names.values():
            if len(_WILDCARD.findall(name)) > num_wildcards:
                raise ValueError(f"{self!r}: HF pattern {name} has more wildcards than {megatron_param}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.megatron_param!r}, {self.hf_param!r})"

    @property
    def hf_names(self) -> dict[str, str]:
        """The HF names by role; a single tensor has the role "weight"."""
        return {"weight": self.hf_param} if isinstance(self.hf_param, str) else self.hf_param

    @property
    def group_key(self) -> str:
        """A key that is the same for tasks that share an HF tensor and must be exported together."""
        return self.hf_param if isinstance(self.hf_param, str) else self.megatron_param

    @property
    def is_grouped_export(self) -> bool:
        """Whether one HF tensor is made of several Megatron parameters."""
        return False

    @property
    def is_expert(self) -> bool:
        """Whether the parameter belongs to an expert of a mixture."""
        return ".experts." in self.megatron_param

    def resolve(self, captures: Sequence[str]) -> Self:
        """The same mapping with its wildcards replaced, in order, by `captures`.

        Example:
            >>> AutoMapping("decoder.layers.*.norm", "model.layers.*.ln").resolve(["3"])
            AutoMapping('decoder.layers.3.norm', 'model.layers.3.ln')
        """
        resolved = object.__new__(type(self))
        resolved.__dict__.update(self.__dict__)
        resolved.megatron_param = _substitute(self.megatron_param, captures)
        if isinstance(self.hf_param, str):
            resolved.hf_param = _substitute(self.hf_param, captures)
        else:
            resolved.hf_param = {role: _substitute(name, captures) for role, name in self.hf_param.items()}
        return resolved

    def renamed(self, *, megatron: tuple[str, str], hf: tuple[str, str] = ("", "")) -> Self:
        """The same mapping with the first text of each pair replaced by the second, once in each name that has it.

        Example:
            >>> AutoMapping("decoder.a", "model.a").renamed(megatron=("decoder.", "mtp."), hf=("model.", "next."))
            AutoMapping('mtp.a', 'next.a')
        """
        renamed = self.resolve(())
        renamed.megatron_param = self.megatron_param.replace(*megatron, 1)
        names = {role: name.replace(*hf, 1) for role, name in self.hf_names.items()}
        renamed.hf_param = names["weight"] if isinstance(self.hf_param, str) else names
        return renamed

    def below(self, *, megatron: str, hf: tuple[str, str]) -> Self:
        """The same mapping for a model that is part of another (see `blocks.below`)."""
        part = self.renamed(megatron=("", megatron))
        names = {role: _begun_otherwise(name, hf) for role, name in self.hf_names.items()}
        part.hf_param = names["weight"] if isinstance(self.hf_param, str) else names
        return part

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        """How the whole Megatron weight is made of the HF tensors.

        Args:
            shape: the shape of the whole weight.
            config: the provider.
        """
        if self.megatron_param in VOCABULARY_WEIGHTS:
            return layouts.padded(shape, 0, min(config.vocab_size, shape[0]))
        is_attention_output = self.megatron_param.endswith("self_attention.linear_proj.weight")
        if is_attention_output and config.unpadded_query_groups and config.num_query_groups:
            # The other columns belong to query groups added for tensor parallelism.
            return layouts.padded(shape, 1, shape[1] // config.num_query_groups * config.unpadded_query_groups)
        return layouts.identity(shape)


class DirectMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight."""


class ColumnParallelMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight, cut along its rows."""


class RowParallelMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight, cut along its columns."""


class ReplicatedMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight, held whole by every tensor-parallel rank."""


class AutoMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight, however the model cuts it.

    Args:
        permute_dims: the axes of the HF tensor in the order in which the Megatron weight has them.
    """

    def __init__(self, megatron_param: str, hf_param: str, permute_dims: tuple[int, ...] | None = None):
        super().__init__(megatron_param, hf_param)
        self.permute_dims = permute_dims

    @classmethod
    def register_module_type(cls, module_name: str, parallelism_type: str) -> None:
        """Accepts a module class and its kind of parallelism: "column", "row" or "replicated".

        There is nothing to remember, because placement is read from the model's `sharded_state_dict()`. The kind is
        checked all the same, so that a typo is found.
        """
        if parallelism_type not in ("column", "row", "replicated"):
            raise ValueError(f"{module_name}: parallelism must be column, row or replicated, found {parallelism_type}")

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        if self.permute_dims:
            return layouts.identity(shape, tuple(self.permute_dims))
        return super().layout(shape, config)


class TransposedMapping(MegatronParamMapping):
    """One HF tensor `[in, out]` is the Megatron weight `[out, in]` (GPT-2's linear layers)."""

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layouts.flipped(super().layout(shape, config))


class RMSNorm2ZeroCenteredRMSNormMapping(MegatronParamMapping):
    """The weight w of an HF norm is w - 1 in Megatron, whose norm multiplies by 1 + weight.

    Nothing is lost if w is at least 0.5 (and in bfloat16 below 256); smaller weights are rounded.

    Args:
        if_field: the provider field that says whether Megatron's norm does so; default: it always does.
    """

    def __init__(self, megatron_param: str, hf_param: str, *, if_field: str | None = None):
        super().__init__(megatron_param, hf_param)
        self.if_field = if_field

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        is_centered = self.if_field is None or getattr(config, self.if_field)
        return layouts.identity(shape, offset=-1.0 if is_centered else 0.0)


class QKVMapping(MegatronParamMapping):
    """Separate q, k and v tensors make the fused `linear_qkv`, interleaved by query group; weights and biases alike."""

    def __init__(self, megatron_param: str, q: str, k: str, v: str):
        super().__init__(megatron_param, {"q": q, "k": k, "v": v})

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layouts.grouped_rows(shape, config.num_hf_query_groups, _qkv_rows(self.megatron_param, shape, config))


class LayerQKVMapping(MegatronParamMapping):
    """Like `QKVMapping`, where heads differ between layers (`window_attention`) or values have another size than keys.

    Args:
        hf_names: the names of q, k and v; without v if values are the keys, and with q alone if the layer uses the keys
            and values of another.
    """

    def __init__(self, megatron_param: str, **hf_names: str):
        super().__init__(megatron_param, hf_names)

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        match = _LAYER_INDEX.search(self.megatron_param)
        assert match, "a layout needs a mapping without wildcards"
        config = config.layer_config(int(match.group(1)) + 1)
        num_groups, head_dim = _groups(config)
        rows = {"q": config.num_attention_heads // num_groups * head_dim, "k": head_dim}
        rows["v"] = shape[0] // num_groups - sum(rows.values())
        return layouts.grouped_rows(shape, config.num_hf_query_groups, {role: rows[role] for role in self.hf_names})


class FusedQKVMapping(MegatronParamMapping):
    """One HF tensor that holds q, k and v makes the fused `linear_qkv`; weights and biases alike.

    Args:
        order: the order of the parts in each chunk of the HF tensor.
        num_chunks: the number of chunks, each with the q, k and v rows of an equal share of the query groups: 1 if all
            rows of q come first, then those of k, then those of v; `None` for one chunk per query group.
        transposed: whether the HF weight is `[in, out]`.
    """

    def __init__(
        self,
        megatron_param: str,
        hf_param: str,
        *,
        order: Sequence[str] = ("q", "k", "v"),
        num_chunks: int | None = 1,
        transposed: bool = False,
    ):
        super().__init__(megatron_param, hf_param)
        self.order, self.num_chunks, self.transposed = tuple(order), num_chunks, transposed

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        rows, num_groups = _qkv_rows(self.megatron_param, shape, config), config.num_hf_query_groups
        num_chunks = num_groups if self.num_chunks is None else self.num_chunks
        if num_groups % num_chunks:
            raise UnsupportedConfigError(
                f"{self.megatron_param}: {num_groups} query groups cannot be shared out over {num_chunks} chunks of "
                f"{self.hf_param}"
            )
        return layouts.regrouped_rows(
            shape, num_groups, rows, order=self.order, num_chunks=num_chunks, transposed=self.transposed
        )


class GatedQKVMapping(QKVMapping):
    """Like `QKVMapping`, but in the q tensor the output gate of each head follows its query."""

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        num_groups, head_dim = _groups(config)
        return layouts.gated_grouped_rows(shape, num_groups, config.num_attention_heads // num_groups, head_dim)


class SectionMapping(MegatronParamMapping):
    """One section of each group of rows of an HF tensor makes a weight; other mappings take the other sections.

    Args:
        sections: the number of rows of each section in a group.
        section: the index of this mapping's section.
        num_groups: the number of groups in the HF tensor.

    Example:
        >>> [SectionMapping(f"mixer.in_proj.{part}", "mixer.in_proj", (64, 64), i) for i, part in enumerate("xz")]
        [SectionMapping('mixer.in_proj.x', 'mixer.in_proj'), SectionMapping('mixer.in_proj.z', 'mixer.in_proj')]
    """

    def __init__(self, megatron_param: str, hf_param: str, sections: Sequence[int], section: int, num_groups: int = 1):
        super().__init__(megatron_param, hf_param)
        self.sections, self.section, self.num_groups = tuple(sections), section, num_groups

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layouts.section_rows(shape, self.num_groups, self.sections, self.section)


class GatedMLPMapping(MegatronParamMapping):
    """Separate gate and up tensors make `linear_fc1`, `[gate; up]` of shape `[2F, H]`; weights and biases alike."""

    def __init__(self, megatron_param: str, gate: str, up: str):
        super().__init__(megatron_param, {"gate": gate, "up": up})

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        half = shape[0] // 2
        return layouts.concatenated_rows(shape, {"gate": half, "up": half})


class FusedGatedMLPMapping(MegatronParamMapping):
    """One HF tensor that holds gate and up makes `linear_fc1`, `[gate; up]` of shape `[2F, H]`; or its bias.

    Args:
        order: the order of gate and up in the HF tensor.
        transposed: whether the HF weight is `[in, out]`.
    """

    def __init__(
        self, megatron_param: str, hf_param: str, *, order: Sequence[str] = ("gate", "up"), transposed: bool = False
    ):
        super().__init__(megatron_param, hf_param)
        self.order, self.transposed = tuple(order), transposed

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        half = shape[0] // 2
        return layouts.regrouped_rows(
            shape, 1, {"gate": half, "up": half}, order=self.order, transposed=self.transposed
        )


class FusedExpertMapping(MegatronParamMapping):
    """One expert's weight or bias, taken from an HF tensor that holds those of all experts of a layer.

    Args:
        megatron_param: ends in a wildcard for the expert.
        hf_param: has no wildcard for the expert.
        transposed: whether the HF tensor has rows and columns exchanged: `[E, F, H]` for weights `[H, F]`.
    """

    num_parts = 1

    def __init__(self, megatron_param: str, hf_param: str, *, transposed: bool = False, interleaved: bool = False):
        super().__init__(megatron_param, hf_param)
        self.transposed, self.interleaved = transposed, interleaved

    @property
    def is_grouped_export(self) -> bool:
        return True

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        match = _EXPERT_INDEX.search(self.megatron_param)
        assert match and config.num_moe_experts is not None, "a layout needs a mapping without wildcards"
        return layouts.stacked_expert(
            shape,
            config.num_moe_experts,
            int(match.group()),
            num_parts=self.num_parts,
            interleaved=self.interleaved,
            transposed=self.transposed,
        )


class FusedGatedExpertMapping(FusedExpertMapping):
    """One expert's `linear_fc1`, taken from an HF tensor that holds the gates and ups of all experts of a layer.

    Args:
        interleaved: whether rows (or columns, if transposed) of gate and up alternate in the HF tensor; otherwise gate
            comes first.
    """

    num_parts = 2


class ConcatenatedMapping(MegatronParamMapping):
    """Several HF tensors of the same shape, one after another, make one Megatron weight."""

    def __init__(self, megatron_param: str, hf_params: Sequence[str]):
        super().__init__(megatron_param, {str(index): name for index, name in enumerate(hf_params)})

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layouts.concatenated_rows(shape, dict.fromkeys(self.hf_names, shape[0] // len(self.hf_names)))


class SwappedColumnsMapping(MegatronParamMapping):
    """One HF tensor is the Megatron weight once the two halves of its columns are exchanged."""

    def layout(self, shape: Shape, config: "DecoderConfig") -> Layout:
        return layouts.swapped_columns(shape)


class Dropped:
    """HF tensors that have no place in the Megatron model, and why it is right to lose them.

    Args:
        hf_param: the HF name, or a pattern.
        reason: one clause, shown in plans.
    """

    def __init__(self, hf_param: str, reason: str):
        self.hf_param, self.reason = hf_param, reason

    def __repr__(self) -> str:
        return f"Dropped({self.hf_param!r}, {self.reason!r})"

    def below(self, *, megatron: str, hf: tuple[str, str]) -> "Dropped":
        """The same mark for a model that is part of another (see `blocks.below`)."""
        return self.for_name(_begun_otherwise(self.hf_param, hf))

    def for_name(self, hf_param: str) -> "Dropped":
        """The same mark for another HF name or pattern."""
        mark = copy(self)
        mark.hf_param = hf_param
        return mark


class NotComputed(Dropped):
    """HF tensors of a part that the Megatron model does not have, such as prediction layers.

    Nothing else holds what was learned in them, so a strict export refuses to lose them.
    """


class Tied(Dropped):
    """An HF tensor that is a second copy of another: import checks that they are equal, export writes both.

    Args:
        hf_param: the HF name of the copy.
        same_as: the HF name of the tensor that is kept.
    """

    def __init__(self, hf_param: str, same_as: str):
        super().__init__(hf_param, f"tied to {same_as}")
        self.same_as = same_as

    def below(self, *, megatron: str, hf: tuple[str, str]) -> "Tied":
        return Tied(_begun_otherwise(self.hf_param, hf), same_as=_begun_otherwise(self.same_as, hf))


def _begun_otherwise(name: str, beginnings: tuple[str, str]) -> str:
    """The name, with the first of the two beginnings, if it has it, replaced by the second."""
    first, second = beginnings
    return second + name.removeprefix(first) if name.startswith(first) else name


def _groups(config: "DecoderConfig") -> tuple[int, int]:
    """The number of query groups, and the head dimension."""
    assert config.num_query_groups is not None and config.kv_channels is not None, "finalize() sets them"
    return config.num_query_groups, config.kv_channels


def _qkv_rows(megatron_param: str, shape: Shape, config: "DecoderConfig") -> dict[str, int]:
    """The numbers of rows of q, k and v in each query group of `linear_qkv`."""
    num_groups, head_dim = _groups(config)
    if config.num_attention_heads % num_groups:
        raise UnsupportedConfigError(
            f"{megatron_param}: num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_query_groups {num_groups}; check num_key_value_heads in the HF config"
        )
    rows = {"q": config.num_attention_heads // num_groups * head_dim, "k": head_dim, "v": head_dim}
    if shape[0] != num_groups * sum(rows.values()):
        raise ParallelLayoutError(
            f"{megatron_param}: expected {num_groups * sum(rows.values())} rows for {num_groups} query "
            f"groups, found {shape[0]}; tensor parallelism must divide the number of query groups"
        )
    return rows


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression for a name pattern, in which `*` captures digits and `**` captures anything.

    Example: `pattern_to_regex("layers.*.weight").fullmatch("layers.12.weight").groups()` is `('12',)`.
    """
    parts, last = [], 0
    for match in _WILDCARD.finditer(pattern):
        parts += [re.escape(pattern[last : match.start()]), r"(.*)" if match.group() == "**" else r"(\d+)"]
        last = match.end()
    return re.compile("".join([*parts, re.escape(pattern[last:])]))


def _substitute(pattern: str, captures: Sequence[str]) -> str:
    values = iter(captures)
    # The name of an HF tensor that holds all experts captures no expert's number: that wildcard stays.
    return _WILDCARD.sub(lambda wildcard: str(next(values, wildcard.group())), pattern)
