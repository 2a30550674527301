"""What every page of a report shows: numbers, values, choices, and rows of a label and a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.bridge.discovery.layouts import ParallelLayout, ParallelLayouts
    from megatron.bridge.discovery.report import ModelReport
    from megatron.bridge.discovery.weights import Layer

_MAX_VALUE = 90
_DIGITS = re.compile(r"(?<=\.)\d+(?=\.)")
_MAX_RANKS = 4096
_MAX_TP = 8  # beyond one machine, tensor parallelism waits for the network


def count(number: int) -> str:
    """A number of parameters, such as `671.0 B`."""
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


def value(found: Any) -> str:
    """The value of a config field; long lists by runs of equal entries."""
    if isinstance(found, list) and len(found) > 3:
        runs = [(entry, len(list(run))) for entry, run in groupby(found)]
        if len(runs) <= 4:
            return " ".join(f"{number}x {entry}" for entry, number in runs)
        kinds = list(dict.fromkeys(str(entry) for entry in found))
        if len(kinds) <= 4:
            return ", ".join(f"{sum(str(entry) == kind for entry in found)}x {kind}" for kind in kinds)
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def by_pattern(names: Mapping[str, int]) -> dict[str, int]:
    """Names that differ in numbers alone, together, with how many they are."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_DIGITS.sub("*", name), []).append(name)
    return {
        pattern if len(found) > 1 else found[0]: sum(names[name] for name in found) for pattern, found in alike.items()
    }


def layer_runs(layers: Iterable[Layer]) -> list[tuple[str, str, int, int]]:
    """Runs of layers of the same kind: their numbers, their kind, how many, and the parameters of one."""
    runs = []
    for (mixer, feed_forward), group in groupby(layers, key=lambda layer: (layer.mixer, layer.feed_forward)):
        run = list(group)
        numbers = str(run[0].index) if len(run) == 1 else f"{run[0].index}-{run[-1].index}"
        kind = " + ".join(part for part in (mixer, feed_forward) if part != "none") or "empty"
        runs.append((numbers, kind, len(run), run[0].num_parameters))
    return runs


def layers_in_words(layers: Iterable[Layer]) -> str:
    """The runs in one line; a pattern that repeats is counted instead."""
    runs = layer_runs(layers)
    if len(runs) <= 6:
        return ", ".join(f"{numbers} {kind}" for numbers, kind, _, _ in runs)
    kinds: dict[str, int] = {}
    for _, kind, number, _ in runs:
        kinds[kind] = kinds.get(kind, 0) + number
    return ", ".join(f"{number}x {kind}" for kind, number in kinds.items())


def chosen_layouts(layouts: ParallelLayouts) -> list[ParallelLayout]:
    """For each power of two of ranks, the layout of that many with the fewest bytes on the fullest rank.

    Tensor parallelism stays within a machine of 8; of layouts that are equal, the one with the least of it.
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


def stages(layout: ParallelLayout) -> str:
    """The pipeline stages, with the layers of the first and the last in brackets where they differ from the others."""
    ends = "" if layout.first_stage is None else f" ({layout.first_stage}..{layout.last_stage})"
    return f"{layout.pp}{ends}"


def summary(report: ModelReport) -> Iterator[tuple[str, str]]:
    """What the model is."""
    classes = report.classes
    rows = {
        "kind": f"{report.kind}: {report.kind_reason}",
        "model_type": f"{classes.model_type}, config class {classes.config_class or 'not in transformers'}",
        "text model": f"its fields stand at: {report.text_level}",
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
        words += f"; {report.text_level} says {str(tying.text_level).lower()}, which transformers does not follow"
    if tying.has_output_layer is not None and tying.has_output_layer == tying.is_tied:
        words += "; an output layer is stored all the same" if tying.is_tied else "; but no output layer is stored"
    return words


def quantization(report: ModelReport) -> Iterator[tuple[str, str]]:
    """How weights are stored; nothing for a model that neither says nor shows that they are quantised."""
    found = report.quantization
    if not (found.stated or found.formats or found.problems):
        return
    yield "config says", found.stated or "nothing"
    for name, number in found.formats.items():
        parts = ", ".join(f"{role}: {ending}" for role, ending in found.companions.get(name, {}).items())
        yield "tensors show", f"{number}x {name} ({parts})"
    if found.agree is not None:
        yield "agree", "yes" if found.agree else "no"
    for reason, number in found.dropped.items():
        yield "left out", f"{number}x {reason}"
