"""The comparison with transformers that decides whether a family is right: logits forward, weights back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from tests.ling import LING, LING_VARIANTS
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS, TOLERANCE, TinyModel

__all__ = ["LAYOUTS", "TOLERANCE", "Parity", "all_cases", "case_of", "changed_tensors", "layouts_of", "parity"]

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2": {"tp": 2},
    "pp2": {"pp": 2},
    "tp2-sp": {"tp": 2, "sequence_parallel": True},
}
EXPERT_LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"ep": 2, "etp": 1},
    "tp2-ep2-sp": {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True},
    "tp2-etp2-sp": {"tp": 2, "etp": 2, "sequence_parallel": True},
}


def layouts_of(tiny: TinyModel) -> dict[str, dict[str, Any]]:
    """The layouts on which a model must be right."""
    if not tiny.is_moe:
        return LAYOUTS
    layouts = {**LAYOUTS, **EXPERT_LAYOUTS}
    if not tiny.splits_experts:
        layouts = {name: {**layout, "etp": 1} for name, layout in layouts.items() if layout.get("etp") != 2}
    return layouts


def case_of(tiny: TinyModel, layout: str) -> tuple[str, str, str]:
    """The comparison of a model on a layout, as it stands in the record of proofs."""
    return tiny.published_architecture, tiny.name, layout


def all_cases() -> list[tuple[str, str, str]]:
    """Every model on every layout, as they stand in the record of proofs."""
    renamed = [(LING, variant, layout) for variant in LING_VARIANTS for layout in {**LAYOUTS, **EXPERT_LAYOUTS}]
    return [*(case_of(tiny, layout) for tiny in TINY_MODELS.values() for layout in layouts_of(tiny)), *renamed]


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        max_diff: largest absolute difference of logits over all ranks.
        scale: largest absolute logit of transformers.
        changed: names of HF tensors that the export lost, added or changed in any bit.
        tolerance: the model's.
    """

    max_diff: float
    scale: float
    changed: list[str]
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.max_diff <= self.tolerance and not self.changed


def parity(tiny: TinyModel, layout: dict[str, Any], folder: Path) -> Parity:
    """Loads a tiny model on the ranks of `layout`, compares its logits and its export with transformers'."""
    hf_model = tiny.save(folder / "hf")
    tokens = torch.randint(
        0, hf_model.config.vocab_size, (2, tiny.seq_length), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        reference = hf_model(tokens).logits
    results = run_on(layout, convert_and_run, folder / "hf", tokens, layout, folder / "out")
    assert all(logits.shape == reference.shape for logits in results)
    max_diff = max((logits - reference).abs().max().item() for logits in results)
    changed = changed_tensors(folder / "hf", folder / "out")
    return Parity(max_diff, reference.abs().max().item(), changed, tiny.tolerance)


def changed_tensors(source: Path, exported: Path) -> list[str]:
    """Names of tensors that are not in both folders with the same dtype, shape and bits."""
    before, after = (load_file(folder / "model.safetensors") for folder in (source, exported))
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not _same_bits(before[name], after[name])
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def run_on(layout: dict[str, Any], fn: Callable[..., Any], *args: Any) -> list[Any]:
    """What `fn` returns on each rank of a layout."""
    sizes = {name: layout[name] for name in ("tp", "pp", "ep", "etp") if name in layout}
    num_ranks = layout.get("pp", 1) * max(layout.get("tp", 1), layout.get("ep", 1) * layout.get("etp", 1))
    return run_ranks(fn, num_ranks, *args, **sizes)


def build_on(bridge: AutoBridge, layout: dict[str, Any]) -> list[Any]:
    """This rank's part of the model, with weights, on the ranks of a layout."""
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.expert_model_parallel_size = layout.get("ep", 1)
    provider.expert_tensor_parallel_size = layout.get("etp")
    provider.pad_query_groups = layout.get("pad_query_groups", False)
    provider.sequence_parallel = layout.get("sequence_parallel", False)
    provider.finalize()
    return provider.provide_distributed_model(wrap_with_ddp=False)


def convert_and_run(
    folder: Path, tokens: torch.Tensor, layout: dict[str, Any], save_to: Path, **options: Any
) -> torch.Tensor:
    """The logits of the model on this rank's layout; exports it as well.

    Args:
        options: of `AutoBridge.from_hf_pretrained`.
    """
    from megatron.bridge.inference.full_logits import full_logits

    bridge = AutoBridge.from_hf_pretrained(folder, **options)
    model = build_on(bridge, layout)
    logits = full_logits(model, tokens)
    bridge.save_hf_pretrained(model, save_to)
    return logits
