"""The round trip: weights go into Megatron-Core, come out again, and are the same bit for bit."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.errors import CheckpointError
from megatron.bridge.inference.open_model import provider_for
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.quantization.source import open_weights
from megatron.bridge.models.hf_pretrained.source import WeightSource
from megatron.bridge.transport.parallel_sizes import ONE_RANK, ParallelLayout
from megatron.bridge.verification.bits import bit_difference

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class RoundTrip:
    """Exported tensors against the source's.

    Attributes:
        num_tensors, num_bytes: of the tensors that were compared.
        num_dropped: tensors of the source that the family drops for a stated reason.
        mismatches: one line per tensor that is missing, unexpected or different.
    """

    num_tensors: int
    num_bytes: int
    num_dropped: int
    mismatches: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether every tensor came back bit for bit."""
        return not self.mismatches and self.num_tensors > 0


def roundtrip(
    hf_path: str | Path,
    layout: ParallelLayout = ONE_RANK,
    *,
    out: str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    show_progress: bool = False,
) -> RoundTrip:
    """Loads a model into Megatron-Core on this run's ranks, exports it and compares every tensor (collective).

    Args:
        out: write the exported model into this folder, and compare what was written.

    Returns:
        The comparison, the same on every rank.
    """
    from megatron.bridge import runtime

    runtime.enter()
    from megatron.bridge.transport import process_groups

    process_groups.initialize(tp=layout.tp, pp=layout.pp, ep=layout.ep)
    bridge = AutoBridge.from_hf_pretrained(hf_path, trust_remote_code=trust_remote_code, revision=revision)
    hf_pretrained: PreTrainedCausalLM = bridge.hf_pretrained
    if not hf_pretrained.has_weights:
        raise CheckpointError(f"{hf_path}: there are no safetensors weights to convert")
    source = hf_pretrained.state
    model = provider_for(bridge, layout, _main_dtype(source)).provide_distributed_model(wrap_with_ddp=False)
    exported: Iterable[tuple[str, Tensor]]
    if out is None:
        exported = bridge.export_hf_weights(model, cpu=True, show_progress=show_progress)
    else:
        bridge.save_hf_pretrained(model, out, show_progress=show_progress)
        exported = open_weights(out).items()
    registry = bridge._model_bridge.registry(hf_pretrained)
    dropped = {name for name in source if registry.drop_reason(name) is not None}
    comparison: RoundTrip | None = None
    if process_groups.rank() == 0:
        comparison = compare_tensors(source, exported, dropped)
    else:
        deque(exported, maxlen=0)  # takes part in the export
    result: RoundTrip = process_groups.broadcast_object(comparison)
    return result


def compare_folders(source: str | Path, exported: str | Path) -> RoundTrip:
    """Compares the weights of two HF folders, tensor by tensor, bit for bit."""
    return compare_tensors(open_weights(source), open_weights(exported).items())


def compare_tensors(
    source: "Mapping[str, Tensor]", exported: "Iterable[tuple[str, Tensor]]", dropped: Iterable[str] = ()
) -> RoundTrip:
    """Compares exported tensors with the source's by dtype, shape and bytes, as they come.

    Args:
        dropped: names of the source that are not exported.
    """
    dropped = frozenset(dropped)
    awaited = {name for name in source if name not in dropped}
    num_dropped = len(source) - len(awaited)
    num_tensors = num_bytes = 0
    mismatches = []
    for name, tensor in exported:
        if name not in awaited:
            mismatches.append(f"{name}: exported {'twice' if name in source else 'but not in the source'}")
            continue
        awaited.remove(name)
        num_tensors += 1
        num_bytes += tensor.nbytes
        problem = _mismatch(source[name], tensor)
        if problem is not None:
            mismatches.append(f"{name}: {problem}")
    mismatches += [f"{name}: in the source but not exported" for name in source if name in awaited]
    return RoundTrip(num_tensors, num_bytes, num_dropped, tuple(mismatches))


def _mismatch(source: "Tensor", exported: "Tensor") -> str | None:
    import torch

    if source.shape != exported.shape:
        return f"shape {list(exported.shape)}, in the source {list(source.shape)}"
    if exported.dtype != source.dtype:
        # A model has one dtype, and some weights that are held in a wider one: the values must be the same.
        wider = torch.promote_types(source.dtype, exported.dtype)
        wide_source, wide_exported = source.to(wider), exported.to(wider)
        if exported.dtype != wider and bit_difference(wide_source, wide_exported) is not None:
            return f"dtype {exported.dtype}, in the source {source.dtype}"
        source, exported = wide_source, wide_exported
    difference = bit_difference(source, exported)
    return None if difference is None else f"{difference.num_elements} of {source.numel()} elements differ"


def _main_dtype(source: WeightSource) -> "torch.dtype":
    """The dtype of most of the source's numbers, in which it is meant to be used."""
    from collections import Counter

    import torch

    sizes: Counter[torch.dtype] = Counter()
    for info in source.infos.values():
        if info.dtype.is_floating_point:
            sizes[info.dtype] += prod(info.shape)
    return sizes.most_common(1)[0][0] if sizes else torch.float32
