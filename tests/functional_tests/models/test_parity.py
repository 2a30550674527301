"""Every family, on every layout: the logits of transformers, and the checkpoint back bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity import parity
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
CASES = [
    pytest.param(tiny, layout, id=f"{tiny.name}-{name}")
    for tiny in TINY_MODELS.values()
    for name, layout in {**LAYOUTS, **(EXPERT_LAYOUTS if tiny.is_moe else {})}.items()
]


@pytest.mark.parametrize(("tiny", "layout"), CASES)
def test_logits_and_export(tiny: TinyModel, layout: dict[str, Any], tmp_path: Path) -> None:
    found = parity(tiny, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= tiny.tolerance, f"logits of up to {found.scale:.1f}"
