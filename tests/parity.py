"""The comparison with transformers that decides whether a family is right: logits forward, weights back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from megatron.bridge.models.conversion.registered import registered_bridges
from megatron.bridge.models.proven import Proof
from megatron.bridge.runtime import capabilities
from tests.proof_record import CASE, Case, as_property
from tests.ranks import run_ranks
from tests.rounding import reference
from tests.tiny_models import ALL_MODELS, TinyModel

__all__ = [
    "EXPERT_LAYOUTS",
    "LAYOUTS",
    "ConversionSuite",
    "Parity",
    "all_cases",
    "bridge_of",
    "build_on",
    "case_of",
    "changed_tensors",
    "convert_and_run",
    "layouts_of",
    "num_ranks",
    "parity",
    "run_on",
]

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


def case_of(tiny: TinyModel, layout: str) -> Case:
    """The comparison of a model on a layout, as it stands in the record of proofs."""
    return tiny.published_architecture, tiny.name, layout


def all_cases() -> dict[Case, str]:
    """Every model on every layout, as they stand in the record of proofs, with the family's folder."""
    return {case_of(tiny, layout): bridge_of(tiny)[0] for tiny in ALL_MODELS.values() for layout in layouts_of(tiny)}


def bridge_of(tiny: TinyModel) -> tuple[str, str]:
    """The folder of the family that converts a model, and the module of the bridge."""
    family, module = _bridges()[tiny.published_architecture].bridge_class.__module__.split(".")[-2:]
    return family, module


_bridges = cache(registered_bridges)


class ConversionSuite:
    """Every variant of a model, on every layout: the logits of transformers, and the checkpoint back bit for bit.

    The test module of a model derives its class from this one, and names the variants.

    Attributes:
        models: the variants.
        whole: names of variants that run on every layout in every run. The others run on one, and on all as proofs.
    """

    models: ClassVar[Sequence[TinyModel]] = ()
    whole: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "layout" not in metafunc.fixturenames:  # a further test of the model's own
            return
        params = []
        for tiny in self.models:
            shown = "tp2-ep2-sp" if tiny.is_moe else "tp2"
            for name, layout in layouts_of(tiny).items():
                marks = [pytest.mark.ranks(num_ranks(layout))]
                if tiny.name not in self.whole and name != shown:
                    marks.append(pytest.mark.proof)
                params.append(pytest.param(tiny, name, id=f"{tiny.name}-{name}", marks=marks))
        metafunc.parametrize(("tiny", "layout"), params)

    def test_logits_and_export(self, tiny: TinyModel, layout: str, tmp_path: Path, record_property: Any) -> None:
        record_property(CASE, case_of(tiny, layout))
        found = parity(tiny, layouts_of(tiny)[layout], tmp_path)
        assert found.changed == []
        assert found.max_diff <= found.tolerance, f"logits of up to {found.scale:.1f}"
        other = tiny.architecture if tiny.architecture != tiny.published_architecture else None
        record_property(*as_property(Proof(*case_of(tiny, layout), found.max_diff, True, other)))


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        max_diff: largest absolute difference of logits over all ranks.
        scale: largest absolute logit of transformers.
        changed: names of HF tensors that the export lost, added or changed in any bit.
        tolerance: how large `max_diff` may be.
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
    expected, tolerance = reference(hf_model, tokens)
    run = partial(convert_and_run, trust_remote_code=tiny.trust_remote_code)
    results = run_on(layout, run, folder / "hf", tokens, layout, folder / "out")
    assert all(logits.shape == expected.shape for logits in results)
    max_diff = max((logits - expected).abs().max().item() for logits in results)
    changed = changed_tensors(folder / "hf", folder / "out")
    return Parity(max_diff, expected.abs().max().item(), changed, tolerance)


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
    sizes = {name: layout[name] for name in ("tp", "pp", "vpp", "ep", "etp") if name in layout}
    return run_ranks(fn, num_ranks(layout), *args, **sizes)


def num_ranks(layout: dict[str, Any]) -> int:
    """How many ranks a layout needs."""
    return layout.get("pp", 1) * max(layout.get("tp", 1), layout.get("ep", 1) * layout.get("etp", 1))


def build_on(bridge: AutoBridge, layout: dict[str, Any]) -> list[Any]:
    """This rank's part of the model, with weights, on the ranks of a layout."""
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.expert_model_parallel_size = layout.get("ep", 1)
    provider.expert_tensor_parallel_size = layout.get("etp")
    provider.pad_query_groups = layout.get("pad_query_groups", False)
    provider.sequence_parallel = layout.get("sequence_parallel", False)
    provider.virtual_pipeline_model_parallel_size = layout.get("vpp")
    for name in ("model_class", "hybrid_layers"):
        setattr(provider, name, layout.get(name, getattr(provider, name)))
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
    logits = full_logits(model, tokens.to(capabilities.device()))
    bridge.save_hf_pretrained(model, save_to)
    return logits.cpu()
