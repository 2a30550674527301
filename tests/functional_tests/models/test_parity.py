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
CASES = [
    pytest.param(tiny, layout, id=f"{tiny.name}-{name}")
    for tiny in TINY_MODELS.values()
    for name, layout in {**LAYOUTS, **(EXPERT_LAYOUTS if tiny.is_moe else {})}.items()
]


@pytest.mark.parametrize(("tiny", "layout"), CASES)
def test_logits_and_export(tiny: TinyModel, layout: dict[str, Any], tmp_path: Path) -> None:
    found = parity(tiny, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TOLERANCE, f"logits of up to {found.scale:.1f}"


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-all-biases"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "sequence_parallel": True}], ids=str)
def test_added_query_groups_change_nothing(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    """Three query groups on two ranks: a group of zeros is added, and left out on export."""
    config = {**TINY_MODELS[name].config, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    tiny = TinyModel(name, TINY_MODELS[name].architecture, config)
    found = parity(tiny, {**layout, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TOLERANCE
