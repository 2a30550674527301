"""What is quantised in a model: what its config says, what its tensors show, and whether the two agree."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from megatron.bridge.discovery.model_files import ModelFiles
from megatron.bridge.models.hf_pretrained.config import quantization_config
from megatron.bridge.models.hf_pretrained.quantization.detection import Detection, detect

# By `quant_method`: what the names of the formats of its tensors contain.
_FORMATS_BY_METHOD = {
    "fp8": ("FP8",),
    "fbgemm_fp8": ("FP8",),
    "mxfp4": ("MXFP4",),
    "gptq": ("GPTQ",),
    "awq": ("AWQ",),
    "bitsandbytes": ("bitsandbytes",),
}
_DIGITS = re.compile(r"\d+")


@dataclass
class Quantization:
    """What is quantised.

    Attributes:
        stated: the method that the config states, with its details; `None` if it states none.
        formats: how many tensors there are of each format and granularity.
        companions: by format, the endings of the names of a tensor's stored parts, by role.
        agree: whether config and tensors say the same; `None` if there is nothing to compare.
        disagreements: how they differ.
        dropped: how many stored tensors belong to no weight, by reason.
        problems: the tensors that cannot be read, by name.
    """

    stated: str | None = None
    formats: dict[str, int] = field(default_factory=dict)
    companions: dict[str, dict[str, str]] = field(default_factory=dict)
    agree: bool | None = None
    disagreements: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_quantization(model: ModelFiles) -> tuple[Detection, Quantization]:
    """The quantised tensors of a model, and what the report says about them."""
    stated = quantization_config(model.config)
    detection = detect(model.stored, stated)
    formats: Counter[str] = Counter()
    companions: dict[str, dict[str, str]] = {}
    for tensor in detection.tensors.values():
        formats[tensor.format] += model.copies.get(tensor.parts["weight"], 1)
        stem = tensor.name.rpartition(".")[0]
        parts = {role: part.removeprefix(stem).lstrip(".") for role, part in tensor.parts.items()}
        companions.setdefault(tensor.format, parts)
    dropped: Counter[str] = Counter()
    for name, reason in detection.dropped.items():
        dropped[reason] += model.copies.get(name, 1)
    result = Quantization(
        _statement(stated), dict(formats.most_common()), companions, None, [], dict(dropped), list(detection.problems)
    )
    if model.stored and (stated or detection.tensors):
        result.disagreements = list(_disagreements(stated, detection))
        result.agree = not result.disagreements
    return detection, result


def _statement(stated: Mapping[str, object]) -> str | None:
    if not stated:
        return None
    method = str(stated.get("quant_method") or stated.get("quantization_method") or "no quant_method")
    details = []
    for name in ("quant_algo", "format", "fmt", "bits", "group_size", "weight_block_size", "activation_scheme"):
        if stated.get(name) is not None:
            details.append(f"{name} {stated[name]}")
    details += [f"weights {weights}" for weights in _group_weights(stated)]
    return f"{method} ({', '.join(details)})" if details else method


def _group_weights(stated: Mapping[str, object]) -> list[str]:
    """The weights of each group in a config of compressed-tensors, such as `8-bit float per channel`."""
    groups = stated.get("config_groups")
    texts = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            texts.append(f"{weights.get('num_bits', '?')}-bit {weights.get('type', '')} per {weights.get('strategy')}")
    return texts


def _expected_formats(stated: Mapping[str, object]) -> tuple[str, ...]:
    """What the names of the formats that the config states contain; nothing if the config does not tell."""
    method = str(stated.get("quant_method") or "").lower()
    if method == "modelopt" or "quant_algo" in stated:
        algorithm = str(stated.get("quant_algo") or "").upper()
        return ("NVFP4",) if "FP4" in algorithm else ("FP8",) if "FP8" in algorithm else ()
    if method == "compressed-tensors":
        form = str(stated.get("format") or "")
        expected: list[str] = []
        for group in _group_weights(stated):
            bits, kind = group.split("-bit ")[0], group.split("-bit ")[1]
            floats = ("FP8",) if bits == "8" else ("MXFP4",) if "mxfp4" in form else ("NVFP4",)
            expected += floats if kind.startswith("float") else (f"INT{bits}",)
        return tuple(expected)
    return _FORMATS_BY_METHOD.get(method, ())


def _disagreements(stated: Mapping[str, object], detection: Detection) -> Iterator[str]:
    formats = detection.formats
    if not stated:
        yield f"the config has no quantization_config, but tensors are quantised: {', '.join(formats)}"
        return
    method = stated.get("quant_method") or stated.get("quant_algo")
    if not formats:
        unread = f"{len(detection.problems)} tensors cannot be read" if detection.problems else "no tensor is quantised"
        yield f"the config states {method}, but {unread}"
        return
    expected = _expected_formats(stated)
    for name, count in formats.items():
        if expected and not any(kind in name for kind in expected):
            yield f"the config states {method} ({' or '.join(expected)}), but {count} tensors are {name}"
    block = stated.get("weight_block_size")
    if isinstance(block, list) and all(type(size) is int for size in block):
        sizes: Counter[tuple[int, ...]] = Counter()
        for tensor in detection.tensors.values():
            own: tuple[int, ...] = getattr(tensor, "block", ())
            if len(own) > 1 and own != tensor.shape:
                sizes[own[-2:]] += 1
        for size, count in sizes.items():
            if sorted(size) != sorted(block):
                yield f"weight_block_size is {block}, but the scales of {count} tensors are for blocks of {list(size)}"
    kept = stated.get("modules_to_not_convert") or stated.get("ignore") or stated.get("exclude_modules") or []
    for module in kept if isinstance(kept, list) else ():
        if isinstance(module, str) and module and not module.startswith("re:") and "*" not in module:
            inside = next((name for name in detection.tensors if name.startswith(f"{module}.")), None)
            if inside is not None:
                yield f"the config leaves {module} as it is, but {inside} is quantised"
