"""What both pages of a report show: numbers, values, chosen layouts, and rows of a label and a text."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from math import prod

from megatron.bridge.discovery.layouts import ParallelLayout, ParallelLayouts
from megatron.bridge.discovery.report import ModelReport, Support
from megatron.bridge.discovery.weights import Layer
from megatron.bridge.models.transformer.parallel_rules import EXPERT_FIELDS

_MAX_VALUE = 90
_DIGITS = re.compile(r"(?<=\.)\d+(?=\.)")
_MAX_RANKS = 4096
_MAX_TP = 8  # the GPUs of one machine, beyond which tensor parallelism waits for the network


def count(number: int) -> str:
    """A number of parameters, such as `671 B`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}" if number < 100 * scale else f"{number / scale:.0f} {unit}"
    return str(number)


def size(num_bytes: float) -> str:
    """A number of bytes, such as `1.37 TB` (powers of ten)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def value(content: object) -> str:
    """The value of a config field; of long lists, the runs of equal entries or the number of each entry."""
    if isinstance(content, list) and len(content) > 3:
        runs = [(entry, len(list(run))) for entry, run in groupby(content)]
        if len(runs) <= 4:
            return " ".join(f"{number}x {entry}" for entry, number in runs)
        counts = Counter(map(str, content))
        if len(counts) <= 4:
            return ", ".join(f"{number}x {entry}" for entry, number in counts.items())
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def by_pattern(names: Mapping[str, int]) -> dict[str, int]:
    """Merges names that differ only in numbers into patterns, and adds up their counts."""
    return {
        _DIGITS.sub("*", alike[0]) if len(alike) > 1 else alike[0]: sum(names[name] for name in alike)
        for alike in alike_names(names)
    }


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """The names in groups that differ only in numbers: those of layers and experts."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_DIGITS.sub("*", name), []).append(name)
    return list(alike.values())


def in_one_name(names: list[str]) -> str:
    """Names that differ only in numbers as one, such as `model.layers.3-60.mlp.experts.0-255.up_proj.weight`.

    Numbers that are no complete range, or not combined in every way, are written as `*`.
    """
    numbers = [sorted(set(map(int, column))) for column in zip(*map(_DIGITS.findall, names), strict=True)]
    is_complete = len(names) == prod(map(len, numbers))
    written = iter(
        str(column[0]) if len(column) == 1
        else f"{column[0]}-{column[-1]}" if is_complete and len(column) == column[-1] - column[0] + 1
        else "*"
        for column in numbers
    )  # fmt: skip
    return _DIGITS.sub(lambda _: next(written), names[0])


def layer_runs(layers: Iterable[Layer]) -> list[tuple[str, str, int, int]]:
    """Runs of layers of the same kind: their numbers, their kind, how many they are, and the parameters of one."""
    runs = []
    for (mixer, feed_forward), group in groupby(layers, key=lambda layer: (layer.mixer, layer.feed_forward)):
        run = list(group)
        numbers = str(run[0].index) if len(run) == 1 else f"{run[0].index}-{run[-1].index}"
        kind = " + ".join(part for part in (mixer, feed_forward) if part != "none") or "empty"
        runs.append((numbers, kind, len(run), run[0].num_parameters))
    return runs


def layers_in_words(layers: Iterable[Layer]) -> str:
    """The runs in one line or, if there are many, the number of layers of each kind."""
    runs = layer_runs(layers)
    if len(runs) <= 6:
        return ", ".join(f"{numbers} {kind}" for numbers, kind, _, _ in runs)
    counts = Counter(kind for _, kind, number, _ in runs for _ in range(number))
    return ", ".join(f"{number}x {kind}" for kind, number in counts.items())


def chosen_layouts(layouts: ParallelLayouts) -> list[ParallelLayout]:
    """For 1, 2, 4, ... ranks, the layout with the fewest bytes on the fullest rank, as long as more ranks help.

    Tensor parallelism stays within a machine of 8 GPUs. Of equally good layouts, the one with the smallest TP counts.
    """
    chosen: list[ParallelLayout] = []
    num_ranks = 1
    while num_ranks <= _MAX_RANKS:
        rows = [row for row in layouts.rows if row.num_ranks == num_ranks and row.tp <= _MAX_TP]
        if rows:
            best = min(rows, key=lambda row: (row.max_bytes, row.tp, row.pp))
            if not chosen or best.max_bytes < chosen[-1].max_bytes * 0.98 or not best.max_bytes:
                chosen.append(best)
        num_ranks *= 2
    return chosen if layouts.rows and chosen and chosen[0].max_bytes else []


def bridge(support: Support) -> Iterator[tuple[str, str]]:
    """The family that supports the model, or the nearest one; nothing if none is near."""
    if support.bridge:
        label = "bridge" if support.is_supported else "nearest bridge"
        yield label, f"{support.bridge} for {support.architecture} ({support.bridge_file})"
        yield "provider", support.provider or ""
        yield "proven on", ", ".join(support.proven_layouts) or "not proven"


def tensors(support: Support) -> tuple[str, str]:
    """How many tensors have a rule."""
    unmatched, left_out = sum(support.unmatched.values()), sum(support.dropped.values())
    encoders = f", {support.num_of_encoders} of encoders" if support.num_of_encoders else ""
    return "tensors", f"{support.num_matched} with a rule, {unmatched} without, {left_out} left out{encoders}"


def parallel_sizes(layouts: ParallelLayouts) -> Iterator[tuple[str, str]]:
    """The sizes that each kind of parallelism may have, and what they must divide."""
    divided = ", ".join(f"{name} {size}" for name, size in layouts.sizes.items() if name not in EXPERT_FIELDS)
    experts = layouts.sizes.get("num_moe_experts")
    tp, pp, uneven, ep = (
        " ".join(map(str, sizes)) for sizes in (layouts.tp, layouts.pp, layouts.uneven_pp, layouts.ep)
    )
    yield "TP", f"{tp}  (divides {divided})" if divided else tp
    yield "PP", f"{pp}; uneven: {uneven}" if uneven else pp
    yield "EP", f"{ep}  (divides num_moe_experts {experts})" if experts else ep
    yield from (("note", note) for note in layouts.notes)


def layouts_caption(layouts: ParallelLayouts) -> str:
    """What the table of chosen layouts shows."""
    return (
        "For each number of ranks, the layout with the fewest parameter bytes on the fullest rank: with TP up to "
        f"{_MAX_TP}, {layouts.bytes_per_parameter} bytes per parameter, without gradients and optimizer. In brackets "
        "after PP: the layers of the first and last stage, if not all stages are equal."
    )


def stages(layout: ParallelLayout) -> str:
    """The number of pipeline stages; in brackets, the layers of the first and the last if not all are equal."""
    ends = "" if layout.first_stage is None else f" ({layout.first_stage}..{layout.last_stage})"
    return f"{layout.pp}{ends}"


def summary(report: ModelReport) -> Iterator[tuple[str, str]]:
    """What the model is."""
    classes = report.classes
    rows = {
        "kind": f"{report.kind}: {report.kind_reason}",
        "model_type": f"{classes.model_type}, config class {classes.config_class or 'not in transformers'}",
        "text fields": report.text_level,
        **report.summaries,
        "layers": layers_in_words(report.layers),
        "embeddings": _tying(report),
        "remote code": ", ".join(f"{name}: {target}" for name, target in classes.auto_map.items()),
        "modeling file": classes.modeling_file,
        "refused": classes.refusal,
    }
    yield from ((name, text) for name, text in rows.items() if text)


def _tying(report: ModelReport) -> str:
    tying = report.tying
    if tying.fact is None:
        return ""
    words = f"{'tied' if tying.is_tied else 'not tied'} (tie_word_embeddings, {tying.fact.level})"
    if tying.text_level is not None and bool(tying.text_level) != tying.is_tied:
        words += f"; {report.text_level} says {str(tying.text_level).lower()}, which transformers ignores"
    if tying.has_output_layer is not None and tying.has_output_layer == tying.is_tied:
        words += "; but an output layer is stored anyway" if tying.is_tied else "; but no output layer is stored"
    return words


def quantization(report: ModelReport) -> Iterator[tuple[str, str]]:
    """How weights are quantised; nothing if neither the config nor the tensors show that they are."""
    shown = report.quantization
    if not (shown.stated or shown.formats or shown.problems):
        return
    yield "config says", shown.stated or "nothing"
    for name, number in shown.formats.items():
        parts = ", ".join(f"{role}: {ending}" for role, ending in shown.companions.get(name, {}).items())
        yield "tensors show", f"{number}x {name} ({parts})"
    if shown.agree is not None:
        yield "they agree", "yes" if shown.agree else "no"
    for reason, number in shown.dropped.items():
        yield "left out", f"{number}x {reason}"
