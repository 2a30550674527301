"""The parallel sizes that a model allows, told from the fields of its provider alone: nothing here needs torch.

The rules are those of megatron-core 0.19 (`TransformerConfig.__post_init__`, `get_num_layers_to_build`,
`select_pipeline_segment`, `MambaMixer`, `MambaContextParallel`, the experts' layers) and of this package's modules.
`DecoderConfig.finalize` asks for `layout_problems`, and so do commands before they start ranks.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any

_TP, _PP, _VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
_EP, _ETP, _CP = "expert_model_parallel_size", "expert_tensor_parallel_size", "context_parallel_size"
_FIRST, _LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"
WINDOW_GROUPS = "num_query_groups of layers with a window"
EXPERT_FIELDS = ("num_moe_experts", "moe_ffn_hidden_size")
_MAX_SHOWN = 4096


def tensor_sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that tensor parallelism cuts, by field.

    Args:
        fields: a provider's fields by name. Those that are absent have megatron-core's defaults.
    """
    names = ["num_attention_heads", "num_query_groups", "ffn_hidden_size", "moe_shared_expert_intermediate_size"]
    defaults = {"num_query_groups": fields.get("num_attention_heads")}
    if fields.get("mamba_num_heads"):
        names += ["mamba_num_heads", "mamba_num_groups"]
        defaults |= {"mamba_num_groups": 8}
    # A provider has megatron-core's defaults for delta nets even if it has none; a config states them only if it has.
    stated = "gated_delta_net" if "linear_num_key_heads" in fields else None
    if fields.get("experimental_attention_variant", stated) == "gated_delta_net":
        names += ["linear_num_key_heads", "linear_num_value_heads"]
        defaults |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32}
    sizes = {name: _size(fields.get(name)) or _size(defaults.get(name)) for name in names}
    window = fields.get("window_attention")
    groups = _size(window.get("num_query_groups")) if isinstance(window, Mapping) else 0
    return {name: size for name, size in {**sizes, WINDOW_GROUPS: groups}.items() if size}


def expert_sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that expert parallelism and expert-tensor parallelism cut, by field; empty without experts.

    Args:
        fields: as for `tensor_sizes`.
    """
    num_experts = _size(fields.get("num_moe_experts"))
    width = _size(fields.get("moe_ffn_hidden_size")) or _size(fields.get("ffn_hidden_size"))
    sizes = dict(zip(EXPERT_FIELDS, (num_experts, width), strict=True)) if num_experts else {}
    return {name: size for name, size in sizes.items() if size}


def layout_problems(fields: Mapping[str, Any], *, pads_query_groups: bool = False) -> list[str]:
    """What is wrong with a provider's parallel sizes, a line each; empty if nothing is.

    Args:
        fields: as for `tensor_sizes`, with the parallel sizes under the names of their fields.
        pads_query_groups: whether query groups will be added where tensor parallelism does not divide them.
    """
    parallel = {name: 1 if fields.get(name) is None else fields[name] for name in (_TP, _PP, _VPP, _EP, _ETP, _CP)}
    wrong = {name: size for name, size in parallel.items() if type(size) is not int or size < 1}
    if wrong:
        return [f"{name} must be a whole number from 1, found {size!r}" for name, size in wrong.items()]
    cut = tensor_sizes(fields)
    if pads_query_groups and cut.get(WINDOW_GROUPS) in (None, cut.get("num_query_groups")):
        padded = ("num_attention_heads", "num_query_groups", WINDOW_GROUPS)
        cut = {name: size for name, size in cut.items() if name not in padded}
    problems = _undivided(_TP, "tp", parallel[_TP], cut)
    experts = expert_sizes(fields)
    if experts:
        # Without a size of its own, it is that of tensor parallelism, whose problem is enough to know.
        follows = fields.get(_ETP) is None
        if not (follows and problems):
            flag, etp = ("etp, which is tp unless it is set", parallel[_TP]) if follows else ("etp", parallel[_ETP])
            problems += _undivided(_ETP, flag, etp, {k: v for k, v in experts.items() if k != "num_moe_experts"})
        problems += _undivided(_EP, "ep", parallel[_EP], {"num_moe_experts": experts["num_moe_experts"]})
    elif parallel[_EP] > 1:
        problems.append(f"{_EP} (ep) is {parallel[_EP]}, but the model has no experts; leave it at 1")
    if not any(cut[name] % parallel[_TP] for name in cut):
        problems += _context_problems(cut, parallel[_TP], parallel[_CP])
    return problems + _pipeline_problems(fields, parallel[_PP], fields.get(_VPP))


def _undivided(field: str, flag: str, parallel: int, sizes: Mapping[str, int]) -> list[str]:
    """A line if a parallel size does not divide every one of the sizes."""
    wrong = [f"{name} is {size}" for name, size in sizes.items() if size % parallel]
    if not wrong:
        return []
    allowed = ", ".join(map(str, divisors(gcd(*sizes.values()), _MAX_SHOWN)))
    return [f"{field} ({flag}) {parallel} does not divide what it splits: {', '.join(wrong)}; it can be {allowed}"]


def divisors(number: int, largest: int) -> list[int]:
    """The divisors of a number up to `largest`, in order: `divisors(12, 4)` is `[1, 2, 3, 4]`."""
    return [size for size in range(1, min(number, largest) + 1) if number % size == 0]


def _context_problems(sizes: Mapping[str, int], tp: int, cp: int) -> list[str]:
    """Mixers and delta nets exchange heads for positions among context-parallel ranks."""
    names = ("mamba_num_heads", "linear_num_key_heads", "linear_num_value_heads")
    wrong = [f"{name} is {sizes[name]}" for name in names if name in sizes and sizes[name] // tp % cp]
    groups = sizes.get("mamba_num_groups", tp) // tp
    if "mamba_num_groups" in sizes and max(groups, cp) % min(groups, cp):
        wrong.append(f"mamba_num_groups is {sizes['mamba_num_groups']}")
    if not wrong:
        return []
    return [f"{_CP} (cp) {cp} and tp {tp} do not divide what they split: {', '.join(wrong)}; choose a smaller cp"]


def _pipeline_problems(fields: Mapping[str, Any], pp: int, vpp: int | None) -> list[str]:
    if vpp is not None and vpp > 1 and pp == 1:
        return [f"{_VPP} (vpp) is {vpp}, but there is one pipeline stage; set {_PP}, or leave vpp at None"]
    num_layers, pattern = _size(fields.get("num_layers")), str(fields.get("hybrid_layer_pattern") or "")
    if fields.get("pipeline_model_parallel_layout") or not num_layers:
        return []  # megatron-core compares such a layout with the layers
    chunks = vpp or 1
    ends = {name: fields[name] for name in (_FIRST, _LAST) if fields.get(name) is not None}
    if ends and ("|" in pattern or (pattern and chunks > 1)):
        return [f"{' and '.join(ends)} cannot be set for this hybrid_layer_pattern; put | between its pipeline stages"]
    if "|" in pattern:
        num_parts = pattern.count("|") + 1
        if num_parts == pp * chunks:
            return []
        return [f"hybrid_layer_pattern has {num_parts} parts, but pp {pp} and vpp {chunks} need {pp * chunks}"]
    counted = [f"account_for_{name}_in_pipeline_split" for name in ("embedding", "loss")]
    num_counted = sum(bool(fields.get(name)) for name in counted)
    if ends and num_counted:
        return [f"{' and '.join(ends)} cannot be set together with {' or '.join(counted)}"]
    return (
        _uneven_problems(num_layers, pp, chunks, ends) if ends else _even_problems(num_layers, pp, chunks, num_counted)
    )


def _even_problems(num_layers: int, pp: int, chunks: int, num_counted: int) -> list[str]:
    total = num_layers + num_counted
    if total % (pp * chunks) == 0:
        return []
    each = f" of {chunks} chunks each" if chunks > 1 else ""
    counted = f" and {num_counted} counted as layers" if num_counted else ""
    evenly = [size for size in divisors(total, _MAX_SHOWN) if total % (size * chunks) == 0]
    possible = ", ".join(str(size) for size in evenly if size > 1 or chunks == 1)
    return [
        f"{num_layers} layers{counted} cannot be split over {pp} pipeline stages (pp){each} evenly; it can be "
        f"{possible or 'none'}, or others with {_FIRST} and {_LAST}"
    ]


def _uneven_problems(num_layers: int, pp: int, chunks: int, ends: Mapping[str, int]) -> list[str]:
    given = ", ".join(f"{name} {size}" for name, size in ends.items())
    if any(type(size) is not int or size < 1 for size in ends.values()):
        return [f"{given}: each must be a whole number from 1"]
    rest, num_between = num_layers - sum(ends.values()), pp - len(ends)
    if num_between < 0 or rest < num_between or (num_between == 0 and rest):
        return [f"{given}: {num_layers} layers leave {rest} for the other {num_between} of {pp} pipeline stages (pp)"]
    if num_between and rest % num_between:
        return [f"{given}: the other {rest} of {num_layers} layers cannot be split over {num_between} stages evenly"]
    stages = [*ends.values(), *([rest // num_between] if num_between else [])]
    if any(size % chunks for size in stages):
        sizes = ", ".join(map(str, stages))
        return [f"{given}: stages of {sizes} layers cannot be cut into {chunks} chunks (vpp) each"]
    return []


def _size(value: object) -> int:
    """A positive size; 0 for anything else."""
    return value if type(value) is int and value > 0 else 0
