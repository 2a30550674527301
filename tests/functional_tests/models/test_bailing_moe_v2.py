"""Ling 2.0 on every layout, compared with transformers' GLM-4.5 (`tests/ling.py`)."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.bridge.models.proven import Proof
from tests.ling import LING, LING_VARIANTS, save_ling
from tests.parity import EXPERT_LAYOUTS, LAYOUTS, TOLERANCE, changed_tensors, convert_and_run, run_on
from tests.proof_record import CASE, as_property

ALL = {**LAYOUTS, **EXPERT_LAYOUTS}


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[] if name == "tp2-ep2-sp" else [pytest.mark.proof]) for name in ALL]
)
@pytest.mark.parametrize("variant", LING_VARIANTS)
@torch.no_grad()
def test_logits_and_export(
    variant: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    record_property(CASE, (LING, variant, layout))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = save_ling(tmp_path / "hf", variant)
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    run = partial(convert_and_run, trust_remote_code=True)
    results = run_on(ALL[layout], run, tmp_path / "hf", tokens, ALL[layout], tmp_path / "out")
    expected = model(tokens).logits
    max_diff = max((logits - expected).abs().max().item() for logits in results)
    assert max_diff <= TOLERANCE
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []
    record_property(*as_property(Proof(LING, variant, layout, max_diff, True, type(model).__name__)))
