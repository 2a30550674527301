"""Every family, on every layout: the logits of transformers, and the checkpoint back bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity import TOLERANCE, parity
from tests.tiny_models import TINY_MODELS, TinyModel

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
    """The layouts that a model can have."""
    layouts = {**LAYOUTS, **(EXPERT_LAYOUTS if tiny.is_moe else {})}
    if tiny.cuts_experts:
        return layouts
    return {name: {"etp": 1, **layout} for name, layout in layouts.items() if layout.get("etp", 1) == 1}


CASES = [
    pytest.param(tiny, layout, id=f"{tiny.name}-{name}")
    for tiny in TINY_MODELS.values()
    for name, layout in layouts_of(tiny).items()
]


@pytest.mark.parametrize(("tiny", "layout"), CASES)
def test_logits_and_export(tiny: TinyModel, layout: dict[str, Any], tmp_path: Path) -> None:
    found = parity(tiny, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TOLERANCE, f"logits of up to {found.scale:.1f}"
