"""What the files of a model contain: `config.json`, the index, and the headers of the weight files."""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from megatron.bridge.models.hf_pretrained.safetensors_format import StoredTensor, read_index, stored_tensors

_EXPERTS = ".experts."
# What the name of a scale (or the like) adds to the name of the tensor that it belongs to.
_COMPANION_ENDINGS = ("_scale_inv", "_scale", "_scale_2", "_global_scale", "_zero_point")
_MAX_NAMES = 5


@dataclass
class ModelFiles:
    """What was read of a model. Of experts that are stored alike, one tensor each, only the first is kept.

    Attributes:
        name: the model's name, as it was given.
        kind: "folder", "hub id" or "config.json".
        config: the content of `config.json`.
        config_folder: a local folder with that file.
        stored: tensors by name.
        copies: how many tensors a name in `stored` or `unread` stands for, if it is more than one.
        num_files: the number of weight files.
        num_tensors: the number of tensors in all of them.
        unread: names of tensors that the index lists but whose files are absent; without those that only belong to
            other tensors (scales and the like).
        problems: what is wrong with the files, by name.
    """

    name: str
    kind: str
    config: Mapping[str, object]
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
        filenames: the files in order.
        tensors: the file of each tensor, if there is an index.
    """

    filenames: list[str]
    tensors: dict[str, str] | None


def weight_index(path: Path) -> WeightIndex:
    """Reads the index of several weight files.

    Raises:
        CheckpointError: it is malformed, or names files outside the folder.
    """
    weight_map, _ = read_index(path)
    return WeightIndex(sorted(set(weight_map.values())), weight_map)


def file_header(path: Path) -> list[StoredTensor]:
    """The tensors of a local weight file, in the order of their data.

    Raises:
        CheckpointError: it is not a safetensors file, or it is truncated.
    """
    return stored_tensors(path)[0]


def add_weights(
    model: ModelFiles, index: WeightIndex, present: list[str], headers: Iterable[list[StoredTensor]]
) -> None:
    """Adds the tensors in the headers of the files `present` to `model`, and compares them with the index."""
    stored: dict[str, StoredTensor] = {}
    with without_garbage_collection():
        for filename, tensors in zip(present, headers, strict=True):
            named = {tensor.name: tensor for tensor in tensors}
            model.problems += [f"{name}: in two files, one of them {filename}" for name in named.keys() & stored.keys()]
            stored |= named
        model.num_files, model.num_tensors = len(present), len(stored)
        absent = sorted(set(index.filenames) - set(present))
        if absent:
            model.problems.append(f"{len(absent)} of {len(index.filenames)} weight files are absent: {_some(absent)}")
        if index.tensors is not None and index.tensors.keys() != stored.keys():
            gone = set(absent)
            missing = index.tensors.keys() - stored.keys()
            model.unread = _unread((name for name in missing if index.tensors[name] in gone), model.copies)
            lost = sorted(name for name in missing if index.tensors[name] not in gone)
            if lost:
                model.problems.append(f"{len(lost)} tensors of the index are in no file: {_some(lost)}")
            if extra := stored.keys() - index.tensors.keys():
                model.problems.append(f"{len(extra)} tensors are not in the index: {_some(sorted(extra))}")
        model.stored = _keep_once(stored, model.copies)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Spares the search for reference cycles, a third of the time for hundreds of thousands of objects without any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _keep_once(stored: dict[str, StoredTensor], copies: dict[str, int]) -> dict[str, StoredTensor]:
    """Keeps only the first expert of each list of experts whose tensors are alike in name, shape and dtype.

    If any expert in a list differs from the others (because a scale is missing, say), the whole list is kept.

    Args:
        copies: for each name that stands for several tensors, their number is added here.
    """
    lists: dict[str, dict[tuple[str, tuple[int, ...], str], dict[str, StoredTensor]]] = defaultdict(dict)
    kept: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
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
    """The names as `ModelFiles.unread` has them: experts once, and nothing that only belongs to other tensors."""
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
