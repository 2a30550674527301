"""What the files of a model say: `config.json`, the index, and the headers of the weight files."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from megatron.bridge.models.hf_pretrained.safetensors_format import (
    StoredTensor,
    read_index,
    stored_tensors,
)

_EXPERTS = ".experts."
# What a scale (or the like) has behind the name of the tensor that it belongs to.
_COMPANION_ENDINGS = ("_scale_inv", "_scale", "_scale_2", "_global_scale", "_zero_point")
_MAX_NAMES = 5


@dataclass
class ModelFiles:
    """What was read of a model. Experts that are stored alike, each tensor on its own, are kept once.

    Attributes:
        name: as it was given.
        kind: "folder", "hub id" or "config.json".
        config: the JSON.
        config_folder: a local folder in which it stands as `config.json`.
        stored: tensors by name; of experts that are alike, the first.
        copies: how many tensors a name of `stored` or `unread` stands for, where it is more than one.
        num_files: files of weights.
        num_tensors: in all of them.
        unread: names that the index lists, in files that are not here; without the companions of quantised tensors.
        problems: what is wrong with the files, each named.
    """

    name: str
    kind: str
    config: dict[str, Any]
    config_folder: Path
    stored: dict[str, StoredTensor] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    num_tensors: int = 0
    unread: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class WeightIndex(NamedTuple):
    """Which weight files a model has.

    Attributes:
        filenames: in order.
        tensors: file by tensor, if there is an index.
    """

    filenames: list[str]
    tensors: dict[str, str] | None


def weight_index(path: Path) -> WeightIndex:
    """The index of several weight files.

    Raises:
        CheckpointError: malformed, or it names files outside the folder.
    """
    weight_map, _ = read_index(path)
    return WeightIndex(sorted(set(weight_map.values())), weight_map)


def file_header(path: Path) -> list[StoredTensor]:
    """The tensors of a weight file here, in the order of their data.

    Raises:
        CheckpointError: not a safetensors file, or cut short.
    """
    return stored_tensors(path)[0]


def add_weights(
    model: ModelFiles, index: WeightIndex, present: list[str], headers: Iterable[list[StoredTensor]]
) -> None:
    """Puts what the headers of the files in `present` say into `model`, and compares it with the index."""
    found: dict[str, StoredTensor] = {}
    with without_garbage_collection():
        for filename, tensors in zip(present, headers, strict=True):
            named = {tensor.name: tensor for tensor in tensors}
            model.problems += [f"{name}: in two files, one of them {filename}" for name in named.keys() & found.keys()]
            found |= named
        model.num_files, model.num_tensors = len(present), len(found)
        absent = sorted(set(index.filenames) - set(present))
        if absent:
            model.problems.append(f"{len(absent)} of {len(index.filenames)} weight files are absent: {_some(absent)}")
        if index.tensors is not None and index.tensors.keys() != found.keys():
            gone = set(absent)
            missing = index.tensors.keys() - found.keys()
            model.unread = _unread((name for name in missing if index.tensors[name] in gone), model.copies)
            lost = sorted(name for name in missing if index.tensors[name] not in gone)
            if lost:
                model.problems.append(f"{len(lost)} tensors of the index are in no file: {_some(lost)}")
            if extra := found.keys() - index.tensors.keys():
                model.problems.append(f"{len(extra)} tensors are not in the index: {_some(sorted(extra))}")
        model.stored = _keep_once(found, model.copies)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Hundreds of thousands of small objects without cycles: looking for cycles would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _keep_once(found: dict[str, StoredTensor], copies: dict[str, int]) -> dict[str, StoredTensor]:
    """Of each list of experts that have the same tensors, of the same shapes and dtypes, keeps the first.

    A list in which one expert differs from another (a scale is missing, say) is kept whole.

    Args:
        copies: gets for each name that stands for several tensors, how many these are.
    """
    lists: dict[str, dict[tuple[str, tuple[int, ...], str], dict[str, StoredTensor]]] = defaultdict(dict)
    kept: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        head, _, tail = name.partition(_EXPERTS)
        number, _, rest = tail.partition(".")
        if rest and number.isdecimal():
            lists[head].setdefault((rest, tensor.shape, tensor.code), {})[number] = tensor
        else:
            kept[name] = tensor
    for alike in lists.values():
        by_number = list(alike.values())
        numbers = by_number[0].keys()
        are_alike = all(tensors.keys() == numbers for tensors in by_number)
        first = min(numbers, key=int)
        for tensors in by_number:
            if are_alike:
                kept[tensors[first].name] = tensors[first]
                copies[tensors[first].name] = len(numbers)
            else:
                kept |= {tensor.name: tensor for tensor in tensors.values()}
    return kept


def _unread(names: Iterable[str], copies: dict[str, int]) -> list[str]:
    """Names whose tensors cannot be read, experts once, without what belongs to other tensors (scales and the like)."""
    named = {name: StoredTensor(name, (), "", 0, 0) for name in names}
    kept = _keep_once(named, copies)
    return [
        name
        for name in kept
        if not any(name.endswith(ending) and name.removesuffix(ending) in kept for ending in _COMPANION_ENDINGS)
    ]


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
