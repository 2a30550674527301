"""Every family, on every layout: the logits of transformers, and the checkpoint back bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity import TOLERANCE, parity
from tests.tiny_models import TINY_MODELS, TinyModel

LAYOUTS = {"tp1": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}, "tp2-sp": {"tp": 2, "sequence_parallel": True}}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("tiny", TINY_MODELS.values(), ids=TINY_MODELS)
def test_logits_and_export(tiny: TinyModel, layout: dict[str, Any], tmp_path: Path) -> None:
    found = parity(tiny, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TOLERANCE, f"logits of up to {found.scale:.1f}"
