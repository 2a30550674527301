"""Every family, on every layout: the logits of transformers, and the checkpoint back bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.models.proven import Proof
from tests.parity import case_of, layouts_of, parity
from tests.proof_record import CASE, as_property
from tests.tiny_models import TINY_MODELS, TinyModel

# The families that run on every layout in every run; of the others each variant runs on one, the rest being proofs.
ALWAYS_WHOLE = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Qwen3MoeForCausalLM")


def cases() -> list[Any]:
    """Every model on every layout."""
    params = []
    for tiny in TINY_MODELS.values():
        shown = "tp2-ep2-sp" if tiny.is_moe else "tp2"
        for name in layouts_of(tiny):
            is_proof = tiny.architecture not in ALWAYS_WHOLE and name != shown
            marks = [pytest.mark.proof] if is_proof else []
            params.append(pytest.param(tiny, name, id=f"{tiny.name}-{name}", marks=marks))
    return params


@pytest.mark.parametrize(("tiny", "layout"), cases())
def test_logits_and_export(tiny: TinyModel, layout: str, tmp_path: Path, record_property: Any) -> None:
    record_property(CASE, case_of(tiny, layout))
    found = parity(tiny, layouts_of(tiny)[layout], tmp_path)
    assert found.changed == []
    assert found.max_diff <= tiny.tolerance, f"logits of up to {found.scale:.1f}"
    reference = tiny.architecture if tiny.architecture != tiny.published_architecture else None
    record_property(*as_property(Proof(*case_of(tiny, layout), found.max_diff, True, reference)))


@pytest.mark.parametrize("name", ["mimo-v2-flash", "gemma4-keys-are-values"])
def test_no_query_groups_are_added_where_none_is_missing(name: str, tmp_path: Path) -> None:
    """Layers with a window have more groups than the others."""
    found = parity(TINY_MODELS[name], {"tp": 2, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TINY_MODELS[name].tolerance


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-all-biases", "gemma4-e2b"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "sequence_parallel": True}], ids=str)
def test_added_query_groups_change_nothing(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    """Three query groups on two ranks: a group of zeros is added, and left out on export."""
    config = {**TINY_MODELS[name].config, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    tiny = replace(TINY_MODELS[name], config=config)
    found = parity(tiny, {**layout, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= tiny.tolerance
