"""The output norm of a gated delta net held as megatron-core's own spec holds it: the weight less 1."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron.bridge import AutoBridge
from tests.parity import changed_tensors, run_on
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS

FIELD = "linear_out_norm_zero_centered"
NORM = "linear_attn.norm.weight"


def save_with_norms(folder: Path, smallest: float) -> dict[str, torch.Tensor]:
    """Saves a tiny model whose output norms have weights from `smallest` on; returns these."""
    TINY_MODELS["qwen3-next"].save(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norms = {name: tensor.clamp(min=smallest) for name, tensor in tensors.items() if name.endswith(NORM)}
    for norm in norms.values():
        norm[0] = smallest
    save_file({**tensors, **norms}, path, metadata={"format": "pt"})
    return norms


def _run(folder: Path, tokens: torch.Tensor, layout: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    from megatron.bridge.inference.full_logits import full_logits

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    setattr(provider, FIELD, True)
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.sequence_parallel = layout.get("sequence_parallel", False)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    logits = full_logits(model, tokens)
    norms = {name: p.detach() for name, p in model[0].named_parameters() if name.endswith("out_norm.weight")}
    bridge.save_hf_pretrained(model, folder.parent / "gathered")
    bridge.save_hf_pretrained(model, folder.parent / "ranges", distributed_save=True)
    bridge.save_megatron_model(model, folder.parent / "megatron")
    return logits, norms


@pytest.mark.parametrize("layout", [{}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}], ids=["tp1", "tp2-sp", "pp2"])
def test_weights_less_one(layout: dict[str, Any], tmp_path: Path) -> None:
    """The logits are the same, Megatron holds w - 1, and every way back gives w in every bit."""
    folder = tmp_path / "hf"
    norms = save_with_norms(folder, smallest=0.5)
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected, tolerance = reference(hf_model, tokens)
    results = run_on(layout, _run, folder, tokens, layout)
    assert all((logits - expected).abs().max() <= tolerance for logits, _ in results)
    held = [next(iter(found.values())) for _, found in results]
    assert torch.equal(held[0], norms[f"model.layers.0.{NORM}"] - 1)
    AutoBridge.from_hf_pretrained(folder).export_ckpt(tmp_path / "megatron", tmp_path / "offline")
    for way in ("gathered", "ranges", "offline"):
        assert changed_tensors(folder, tmp_path / way) == [], way


def test_import_without_a_model(tmp_path: Path) -> None:
    from megatron.bridge import runtime
    from megatron.bridge.models.conversion import offline

    runtime.enter()
    save_with_norms(tmp_path / "hf", smallest=0.5)
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    provider = bridge.to_megatron_provider(load_weights=False)
    setattr(provider, FIELD, True)
    offline.import_checkpoint(bridge._model_bridge, bridge.hf_pretrained, provider, tmp_path / "megatron")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


def test_small_weights_need_the_plain_form(tmp_path: Path) -> None:
    """Why the form with 1 subtracted is not the default: a weight below 0.5 is rounded."""
    norms = save_with_norms(tmp_path / "hf", smallest=0.123456789)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    run_on({}, _run, tmp_path / "hf", tokens, {})
    assert changed_tensors(tmp_path / "hf", tmp_path / "gathered") == sorted(norms)
    rounded = load_file(tmp_path / "gathered" / "model.safetensors")
    assert all((rounded[name] - norm).abs().max() < 1e-7 for name, norm in norms.items())
