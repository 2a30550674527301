"""Finding quantised tensors in a checkpoint, by dtypes, shapes and names: without torch, and without data."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.config import JsonObject
from megatron.bridge.models.hf_pretrained.quantization.codebook import CodebookTensor
from megatron.bridge.models.hf_pretrained.quantization.float4 import Float4Tensor
from megatron.bridge.models.hf_pretrained.quantization.packed_int import PackedIntTensor
from megatron.bridge.models.hf_pretrained.quantization.scaled import FLOAT8_CODES, ScaledTensor
from megatron.bridge.models.hf_pretrained.quantization.tensor import Problem, QuantizedTensor, Stored

KINDS: tuple[type[QuantizedTensor], ...] = (CodebookTensor, PackedIntTensor, Float4Tensor, ScaledTensor)

# Dtypes that no weight has: numbers in them stand for other numbers. (64-bit integers and booleans are tables.)
_RAW_CODES = (*FLOAT8_CODES, "F8_E8M0", "F4", "I8", "U8", "I16", "U16", "I32", "U32")
# Numbers that belong to the arithmetic of a quantised model, not to its weights.
_UNUSED = {
    re.compile(r".*[._](input_scale(_ub)?|input_global_scale|input_zero_point|activation_scale|qscale_act)"): (
        "of activations"
    ),
    re.compile(r".*\.([kvq]_scale|output_scale|[kvq]_zero_point|output_zero_point)(_inv)?"): (
        "of the key-value cache or of outputs"
    ),
}
# Numbers without which the weights are wrong, but which cannot be applied to them here.
_UNREADABLE = {
    ".pre_quant_scale": "a scale of a layer's inputs, which its weights were divided by (ModelOpt's AWQ)",
    ".act.scales": "a scale of an activation function, which the next layer's weights were multiplied by (AWQ)",
}
# Endings of names that nothing but parts of quantised tensors has.
_COMPANION_ENDINGS = (
    "weight_scale_inv", "weight_scale", "weight_scale_2", "weight_zero_point", "weight_global_scale",
    "weight_packed", "weight_shape", "weight_g_idx", ".qweight", ".qzeros", ".scales", ".g_idx", ".SCB",
    "proj_scale_inv", "proj_scale", "_blocks", "_scales", ".qscale_weight", ".absmax", ".quant_map",
    ".weight_format", "quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4",
)  # fmt: skip
_MAX_PROBLEMS = 20
# Fields of a config, or of one of its groups of layers, that are whole numbers (-1: none), and those that are pairs.
_SIZES = ("group_size", "num_bits", "bits")
_BLOCKS = ("weight_block_size", "block_structure")


@dataclass(frozen=True)
class Detection:
    """What is quantised in a checkpoint.

    Attributes:
        tensors: the quantised tensors, by the name of the tensor that is meant.
        dropped: stored tensors that no weight is made of, each with the reason.
        problems: what cannot be read, with the names of the tensors.
    """

    tensors: dict[str, QuantizedTensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def formats(self) -> dict[str, int]:
        """How many tensors there are of each format."""
        return dict(Counter(tensor.format for tensor in self.tensors.values()).most_common())

    def check(self, what: str) -> None:
        """Raises a `QuantizationError` that lists the problems, if there are any."""
        if not self.problems:
            return
        more = len(self.problems) - _MAX_PROBLEMS
        lines = [*self.problems[:_MAX_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
        text = "\n".join(f"  - {line}" for line in lines)
        raise QuantizationError(
            f"{what}: stored numbers that cannot be read as weights; nothing was loaded. {len(self.problems)} "
            f"problem(s):\n{text}\nFetch the checkpoint again, or one that is not quantised."
        )


def detect(stored: Mapping[str, Stored], config: JsonObject | None = None) -> Detection:
    """Finds the quantised tensors of a checkpoint, and everything that looks like one but is not complete.

    `detect(SafetensorsSource(folder).infos).formats` says which formats there are, and how many tensors of each.

    Args:
        stored: every tensor of the checkpoint, by name.
        config: the model's `quantization_config`, if it has one.

    Raises:
        QuantizationError: the config's description of weights is malformed.
    """
    _check_config(config or {})
    detection = Detection()
    used: set[str] = set()
    for kind in KINDS:
        for candidate in kind.find(stored, config or {}):
            names = candidate.names if isinstance(candidate, Problem) else candidate.parts.values()
            if used.intersection(names):
                continue
            used.update(names)
            if isinstance(candidate, Problem):
                detection.problems.append(candidate.text)
                continue
            name, weight = candidate.name, candidate.parts["weight"]
            if name in detection.tensors or (name in stored and name != weight):
                detection.problems.append(f"{name}: stored twice, in {weight} too")
            else:
                detection.tensors[name] = candidate
    for name, tensor in stored.items():
        if name in used:
            continue
        reasons = _UNUSED.items() if config or detection.tensors or detection.problems else ()
        reason = next((reason for pattern, reason in reasons if pattern.fullmatch(name)), None)
        unreadable = next((reason for ending, reason in _UNREADABLE.items() if name.endswith(ending)), None)
        if reason is not None:
            detection.dropped[name] = f"a scale {reason}; weights are not made of it"
        elif unreadable is not None:
            detection.problems.append(f"{name}: {unreadable}")
        elif name.endswith(_COMPANION_ENDINGS):
            detection.problems.append(f"{name}: belongs to a quantised tensor that is not in the checkpoint")
        elif tensor.code in _RAW_CODES:
            detection.problems.append(
                f"{name}: {tensor.code} numbers {list(tensor.shape)} without a scale, which are no weights as they are"
            )
    return detection


def _check_config(config: JsonObject) -> None:
    """Makes sure that the values that are read from the config have the right types."""
    groups = config.get("config_groups") or {}
    listed = list(groups.values()) if isinstance(groups, Mapping) else [groups]
    weights = [group.get("weights") or {} if isinstance(group, Mapping) else group for group in listed]
    wrong: dict[str, object] = {}
    if not all(isinstance(part, Mapping) for part in weights):
        wrong["config_groups"] = groups
    for level in (config, *(part for part in weights if isinstance(part, Mapping))):
        wrong |= {name: level[name] for name in _SIZES if not _is_size(level.get(name))}
        wrong |= {name: level[name] for name in _BLOCKS if not _is_block(level.get(name))}
    if wrong:
        text = "; ".join(f"{name}: {value!r:.100}" for name, value in wrong.items())
        raise QuantizationError(f"quantization_config: malformed, found {text}. Fetch the checkpoint again.")


def _is_size(value: object) -> bool:
    return value is None or (isinstance(value, int) and (value > 0 or value == -1))


def _is_block(value: object) -> bool:
    return value is None or (
        isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_size, value)) and min(value) > 0
    )


def complete(found: Detection, read: Callable[[str], bytes]) -> Detection:
    """What is quantised, completed by what some small stored tensors say, such as the shape of packed numbers.

    Args:
        found: what `detect` found in the headers.
        read: gives the bytes of a stored tensor, by its name.
    """
    completed = Detection({}, found.dropped, [*found.problems])
    for name, tensor in found.tensors.items():
        try:
            contents = {role: read(tensor.parts[role]) for role in tensor.unread}
            completed.tensors[name] = tensor.read(contents) if contents else tensor
        except QuantizationError as error:
            completed.problems.append(str(error))
    return completed
