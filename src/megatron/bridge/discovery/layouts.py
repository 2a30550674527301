"""The parallel layouts that a model allows, and the bytes of its parameters on each rank.

How a weight is split is told from its Megatron name, because asking megatron-core takes torch and a model: `cut_of`
repeats what `sharded_state_dict` of megatron-core 0.19's modules (and of this package's) says, and the tests compare
the two. A weight without a Megatron name counts as whole on every tensor-parallel rank, unless its HF name says that it
is an expert's.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import gcd, lcm
from typing import NamedTuple

from megatron.bridge.discovery import facts
from megatron.bridge.discovery.config_levels import LeveledConfig
from megatron.bridge.discovery.families import FamilyMatch
from megatron.bridge.discovery.weights import Weight
from megatron.bridge.models.transformer.parallel_rules import divisors, expert_sizes, tensor_sizes

_MAX_TP, _MAX_EP = 64, 4096
_UNEVEN_PP = (2, 4, 8, 16, 32, 64)
_TRAINING_BYTES = {"float32": 4, "float64": 4}  # per parameter; otherwise training is in bfloat16 or float16

# Megatron weights that are split across tensor-parallel ranks, by their names within a layer.
_COLUMN = r"self_attention\.(linear_qkv|linear_q_proj|linear_q_up_proj|linear_kv_up_proj)\.(weight|bias)"
_ROW = r"self_attention\.linear_proj\.weight"
_MLP = r"mlp\.(shared_experts\.)?(linear_fc1\.(weight|bias)|linear_fc2\.weight)"
_MIXER = r"\.(in_proj|conv1d)\.(weight|bias)\.\w+|\.(conv1d)\.(weight|bias)|\.(A_log|D|dt_bias)|\.out_proj\.weight"
_OTHERS = r"core_attention\.softmax_offset|mixer\.norm\.weight|eh_proj\.weight"
_CUT = re.compile(rf"(.*\.)?({_COLUMN}|{_ROW}|{_MLP})|.*({_MIXER})|(.*\.)?({_OTHERS})")
# Split too in megatron-core's own layers, but whole on each rank in Transformer Engine's.
_CUT_WITHOUT_TE = re.compile(r".*self_attention\.linear_(q|kv)_down_proj\.weight")
_EXPERT = re.compile(r".*\.experts\.(linear_fc1\.(weight|bias)|linear_fc2\.weight)(\d+|\*)?")
_EXPERT_BIAS = re.compile(r".*\.experts\.linear_fc2\.bias(\d+|\*)?")
_VOCABULARY = re.compile(r"embedding\.word_embeddings\.weight|output_layer\.(weight|bias)")
_PROJECTION_NORM = re.compile(r".*self_attention\.[qk]_layernorm\.weight")


@dataclass
class _Share:
    """The bytes of a part of the model, by how they are split."""

    whole: int = 0
    tensor: int = 0
    expert: int = 0
    expert_whole: int = 0
    vocabulary: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # bytes of a row, by number of rows

    def add(self, other: "_Share") -> None:
        self.whole, self.tensor = self.whole + other.whole, self.tensor + other.tensor
        self.expert, self.expert_whole = self.expert + other.expert, self.expert_whole + other.expert_whole
        for num_rows, nbytes in other.vocabulary.items():
            self.vocabulary[num_rows] += nbytes

    def on_rank(self, tp: int, ep: int, etp: int) -> int:
        """The bytes on each rank."""
        padded = 0
        for num_rows, nbytes in self.vocabulary.items():
            padded += -(-num_rows // tp) * nbytes
        return self.whole + self.tensor // tp + self.expert // (ep * etp) + self.expert_whole // ep + padded


class ParallelLayout(NamedTuple):
    """One layout, with the smallest number of ranks that it needs.

    Attributes:
        tp, pp, ep, etp: tensor-, pipeline-, expert- and expert-tensor-parallel size.
        num_ranks: the ranks at data-parallel size 1, or as many as expert parallelism needs.
        max_bytes, min_bytes: the parameter bytes on a rank of the fullest and of the emptiest pipeline stage.
        first_stage, last_stage: the layers of these stages (`num_layers_in_first_pipeline_stage` and
            `num_layers_in_last_pipeline_stage`) if stages are not equal.
    """

    tp: int
    pp: int
    ep: int
    etp: int
    num_ranks: int
    max_bytes: int
    min_bytes: int
    first_stage: int | None = None
    last_stage: int | None = None


@dataclass
class ParallelLayouts:
    """The layouts to choose from.

    Attributes:
        tp, pp, ep: the sizes that are allowed, each on its own; `pp` has the numbers of equal pipeline stages.
        uneven_pp: numbers of pipeline stages of which the first and the last have another size than the others.
        sizes: the provider fields that must be divided, with their values.
        bytes_per_parameter: bytes in training.
        rows: every combination of these sizes, with expert-tensor-parallel sizes 1 and tp.
        notes: rules that a table cannot show.
    """

    tp: list[int]
    pp: list[int]
    uneven_pp: list[int]
    ep: list[int]
    sizes: dict[str, int]
    bytes_per_parameter: int
    rows: list[ParallelLayout]
    notes: list[str]


def cut_of(
    megatron_name: str | None, category: str, *, with_transformer_engine: bool = True, whole_norms: bool = True
) -> str:
    """How a weight is split: "tensor", "expert", "expert_whole", "vocabulary" or "whole" (on every rank).

    Args:
        megatron_name: `None` if no rule gives one.
        category: that of the HF tensor (`weights.CATEGORIES`).
        with_transformer_engine: whether layers are Transformer Engine's, not megatron-core's own.
        whole_norms: whether norms of queries and keys are the same for every head, so that they are not split.
    """
    if megatron_name is None:
        return "expert" if category == "experts" else "whole"
    if _EXPERT.fullmatch(megatron_name):
        return "expert"
    if _EXPERT_BIAS.fullmatch(megatron_name):
        return "expert_whole"
    if _VOCABULARY.fullmatch(megatron_name):
        return "vocabulary"
    if not with_transformer_engine and _CUT_WITHOUT_TE.fullmatch(megatron_name):
        return "tensor"
    if not whole_norms and _PROJECTION_NORM.fullmatch(megatron_name):
        return "tensor"
    return "tensor" if _CUT.fullmatch(megatron_name) else "whole"


def parallel_layouts(
    config: LeveledConfig,
    family: FamilyMatch,
    weights: list[Weight],
    *,
    is_tied: bool,
    with_transformer_engine: bool = True,
) -> ParallelLayouts | None:
    """The layouts that megatron-core's divisibility rules allow; `None` for a model without decoder layers.

    The rules are those of `parallel_rules`, and of megatron-core's `parallel_state.initialize_model_parallel`.

    Args:
        weights: the weights whose bytes are counted; may be empty.
        is_tied: whether the output layer is the embedding.
        with_transformer_engine: see `cut_of`.
    """
    num_layers = facts.num_layers(config)
    if config.text_level is None or not num_layers:
        return None
    fields = {name: value for name, value in family.fields.items() if type(value) is not int or facts.as_size(value)}
    cut, experts = tensor_sizes(fields), expert_sizes(fields)
    sizes, num_experts = {**cut, **experts}, experts.get("num_moe_experts", 0)
    dtype = config.text("dtype") or config.top("dtype")
    nbytes = _TRAINING_BYTES.get(str(dtype.value), 2) if dtype else 2
    tp = divisors(gcd(*cut.values()) or 1, _MAX_TP)
    pp, ep = divisors(num_layers, num_layers), divisors(num_experts or 1, _MAX_EP)
    is_hybrid = config.text("layers_block_type") is not None
    uneven = [] if is_hybrid else [size for size in _UNEVEN_PP if size < num_layers and size not in pp]
    layouts = ParallelLayouts(tp, pp, uneven, ep, sizes, nbytes, [], [])
    model = _Model(weights, family, num_layers, is_tied, nbytes, with_transformer_engine)
    expert_width = experts.get("moe_ffn_hidden_size", 0)
    splits_experts = num_experts and "expert_tensor_parallel_size" not in family.fields
    for num_stages in (*pp, *uneven):
        counts = layers_per_stage(num_layers, num_stages)
        ends = (counts[0], counts[-1]) if num_stages in uneven else (None, None)
        stages = model.stages(counts)
        for tp_size, ep_size in product(tp, ep):
            for etp in sorted({1, tp_size}) if splits_experts else (1,):
                if num_experts and expert_width % etp:
                    continue
                nbytes_on = [stage.on_rank(tp_size, ep_size, etp) for stage in stages]
                num_ranks = num_stages * (lcm(tp_size, ep_size * etp) if num_experts else tp_size)
                sizes_of = (tp_size, num_stages, ep_size, etp, num_ranks)
                layouts.rows.append(ParallelLayout(*sizes_of, max(nbytes_on), min(nbytes_on), *ends))
    layouts.notes = _notes(sizes, bool(num_experts))
    return layouts


def layers_per_stage(num_layers: int, num_stages: int) -> list[int]:
    """The number of layers of each pipeline stage: all equal, or else all but the first and the last.

    megatron-core 0.19 (`get_num_layers_to_build`) requires that the stages between these two be equal.
    """
    if num_layers % num_stages == 0:
        return [num_layers // num_stages] * num_stages
    between = -(-num_layers // num_stages)
    if num_layers - between * (num_stages - 2) < 2:
        between = num_layers // num_stages
    ends = num_layers - between * (num_stages - 2)
    return [ends - ends // 2, *[between] * (num_stages - 2), ends // 2]


class _Model:
    """The bytes of each decoder layer, and of what comes before and after the layers."""

    def __init__(
        self,
        weights: list[Weight],
        family: FamilyMatch,
        num_layers: int,
        is_tied: bool,
        nbytes: int,
        with_transformer_engine: bool,
    ) -> None:
        self._layers = [_Share() for _ in range(num_layers)]
        self._first, self._last, self._copy = _Share(), _Share(), _Share()
        has_prediction = False
        whole_norms = family.fields.get("qk_layernorm_scope") not in ("projection", "separate_heads")
        for weight in weights:
            name = family.megatron_names.get(weight.name)
            if weight.category == "copies" or weight.name in family.dropped:
                continue
            share = self._layers[weight.layer] if weight.layer is not None and weight.layer < num_layers else self._last
            if weight.category in ("embedding", "vision", "audio", "projector"):
                share = self._first
            has_prediction |= name is not None and name.startswith("mtp.")
            size = 4 if name is not None and name.endswith("router.expert_bias") else nbytes
            cut = cut_of(
                name, weight.category, with_transformer_engine=with_transformer_engine, whole_norms=whole_norms
            )
            if cut == "vocabulary" and weight.num_parameters and weight.shape:
                share.vocabulary[weight.shape[0]] += weight.num_parameters // weight.shape[0] * size
                if weight.category == "embedding":
                    self._copy.vocabulary[weight.shape[0]] += weight.num_parameters // weight.shape[0] * size
            elif cut != "vocabulary":
                setattr(share, cut, getattr(share, cut) + weight.num_parameters * size)
        if not is_tied and not has_prediction:
            self._copy = _Share()

    def stages(self, counts: list[int]) -> list[_Share]:
        """What each pipeline stage holds.

        Args:
            counts: the number of layers of each stage.
        """
        stages, start = [], 0
        for count in counts:
            stages.append(_Share())
            for layer in self._layers[start : start + count]:
                stages[-1].add(layer)
            start += count
        stages[0].add(self._first)
        stages[-1].add(self._last)
        if len(stages) > 1:  # the last stage has a copy of an embedding that is tied or that MTP layers read
            stages[-1].add(self._copy)
        return stages


def _notes(sizes: Mapping[str, int], has_experts: bool) -> list[str]:
    notes = []
    groups = sizes.get("num_query_groups", 0)
    if groups and groups < sizes.get("num_attention_heads", 0):
        notes.append(f"pad_query_groups allows TP beyond {groups} query groups, by adding groups of zeros")
    if has_experts:
        notes.append("training experts with TP needs sequence_parallel")
    return notes
