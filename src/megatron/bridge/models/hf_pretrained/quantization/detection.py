"""Finding quantised tensors in a checkpoint, by dtypes, shapes and names. No torch, no data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.float4 import Float4Tensor
from megatron.bridge.models.hf_pretrained.quantization.scaled import FLOAT8_CODES, ScaledTensor
from megatron.bridge.models.hf_pretrained.quantization.tensor import Problem, QuantizedTensor, Stored

KINDS: tuple[type[QuantizedTensor], ...] = (Float4Tensor, ScaledTensor)

# Dtypes that no weight has: what is stored in them stands for other numbers. (64-bit integers and booleans are tables.)
_RAW_CODES = (*FLOAT8_CODES, "F8_E8M0", "F4", "I8", "U8", "I16", "U16", "I32", "U32")
# Numbers that belong to the arithmetic of a quantised model, not to its weights.
_UNUSED = {
    re.compile(r".*\.(input_scale|input_global_scale|input_zero_point|activation_scale)"): "of activations",
    re.compile(r".*\.(k_scale|v_scale|q_scale|output_scale)(_inv)?"): "of the key-value cache or of outputs",
}
# Endings of names that only parts of quantised tensors have.
_COMPANION_ENDINGS = (
    *("weight_scale_inv", "weight_scale", "weight_scale_2", "weight_zero_point", "weight_global_scale"),
    *("weight_packed", "weight_shape", "weight_g_idx", ".qweight", ".qzeros", ".scales", ".g_idx", ".SCB"),
    *("proj_scale_inv", "proj_scale", "_blocks", "_scales", ".weight.absmax", ".weight.quant_map"),
)
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Detection:
    """What is quantised in a checkpoint.

    Attributes:
        tensors: the quantised tensors by the name that is meant.
        dropped: stored tensors that no weight is made of, with the reason.
        problems: what cannot be read, each named.
    """

    tensors: dict[str, QuantizedTensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def formats(self) -> dict[str, int]:
        """How many tensors there are of each format."""
        return dict(Counter(tensor.format for tensor in self.tensors.values()).most_common())

    def check(self, what: str) -> None:
        """Raises `QuantizationError` listing the problems, if there are any."""
        if not self.problems:
            return
        more = len(self.problems) - _MAX_PROBLEMS
        lines = [*self.problems[:_MAX_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
        text = "\n".join(f"  - {line}" for line in lines)
        raise QuantizationError(
            f"{what}: stored numbers that cannot be read as weights; nothing was loaded. {len(self.problems)} "
            f"problem(s):\n{text}\nFetch the checkpoint again, or one that is not quantised."
        )


def detect(stored: Mapping[str, Stored], config: Mapping[str, Any] | None = None) -> Detection:
    """Finds the quantised tensors of a checkpoint, and everything that looks like one and is not complete.

    Args:
        stored: every tensor of the checkpoint, by name.
        config: the model's `quantization_config`, if it has one.
    """
    found = Detection()
    used: set[str] = set()
    for kind in KINDS:
        for tensor in kind.find(stored, config or {}):
            if isinstance(tensor, Problem):
                found.problems.append(tensor.text)
                used.update(tensor.names)
            elif not used.intersection(tensor.parts.values()):
                found.tensors[tensor.name] = tensor
                used.update(tensor.parts.values())
    for name, tensor in stored.items():
        if name in used:
            continue
        reason = next((reason for pattern, reason in _UNUSED.items() if pattern.fullmatch(name)), None)
        if reason is not None:
            found.dropped[name] = f"a scale {reason}; weights are not made of it"
        elif name.endswith(_COMPANION_ENDINGS):
            found.problems.append(f"{name}: belongs to a quantised tensor that is not in the checkpoint")
        elif tensor.code in _RAW_CODES:
            found.problems.append(
                f"{name}: {tensor.code} numbers {list(tensor.shape)} without a scale, which are no weights as they are"
            )
    return found
