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
# The families that run on every layout in every run; of the others each variant runs on one, the rest being proofs.
ALWAYS_WHOLE = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Qwen3MoeForCausalLM")


def layouts_of(tiny: TinyModel) -> dict[str, dict[str, Any]]:
    """The layouts on which a model must be right."""
    if not tiny.is_moe:
        return LAYOUTS
    layouts = {**LAYOUTS, **EXPERT_LAYOUTS}
    if not tiny.splits_experts:
        layouts = {name: {**layout, "etp": 1} for name, layout in layouts.items() if layout.get("etp") != 2}
    return layouts


def cases() -> list[Any]:
    """Every model on every layout."""
    params = []
    for tiny in TINY_MODELS.values():
        shown = "tp2-ep2-sp" if tiny.is_moe else "tp2"
        for name, layout in layouts_of(tiny).items():
            is_proof = tiny.architecture not in ALWAYS_WHOLE and name != shown
            marks = [pytest.mark.proof] if is_proof else []
            params.append(pytest.param(tiny, layout, id=f"{tiny.name}-{name}", marks=marks))
    return params


@pytest.mark.parametrize(("tiny", "layout"), cases())
def test_logits_and_export(tiny: TinyModel, layout: dict[str, Any], tmp_path: Path) -> None:
    found = parity(tiny, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= tiny.tolerance, f"logits of up to {found.scale:.1f}"


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-all-biases"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "sequence_parallel": True}], ids=str)
def test_added_query_groups_change_nothing(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    """Three query groups on two ranks: a group of zeros is added, and left out on export."""
    config = {**TINY_MODELS[name].config, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    tiny = TinyModel(name, TINY_MODELS[name].architecture, config)
    found = parity(tiny, {**layout, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= tiny.tolerance
