"""A family that reads a quantisation of its own, in `maybe_modify_loaded_hf_weight`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from megatron.bridge.errors import QuantizationError
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.models.conversion import registered
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import Dropped
from megatron.bridge.models.llama.llama_bridge import LlamaBridge
from tests.parity import convert_and_run, run_on
from tests.quantized import is_linear, save_quantized
from tests.rounding import reference

ARCHITECTURE = "LlamaOfWholeNumbersForCausalLM"
TOKENS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))


class BridgeOfWholeNumbers(LlamaBridge):
    """Weights are whole numbers, `step` apart."""

    def mapping_registry(self) -> MegatronMappingRegistry:
        entries = super().mapping_registry().entries
        return MegatronMappingRegistry(*entries, Dropped("**.step", "read with the weight"))

    def maybe_modify_loaded_hf_weight(self, hf_param: Any, hf_state_dict: Any) -> Any:
        names = {"weight": hf_param} if isinstance(hf_param, str) else hf_param
        found = {}
        for role, name in names.items():
            found[role] = hf_state_dict[name]
            if is_linear(name):
                found[role] = found[role].float() * hf_state_dict[name.removesuffix("weight") + "step"]
        return found if isinstance(hf_param, dict) else found["weight"]


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family, registered for the time of a test."""
    monkeypatch.setattr(registered, "_BRIDGES", dict(registered._BRIDGES))
    MegatronModelBridge.register_bridge(source=ARCHITECTURE, target="GPTModel")(BridgeOfWholeNumbers)


def _save(folder: Path) -> tuple[torch.Tensor, float]:
    """Saves such a model; transformers' logits with the numbers that are meant, and how far others may be from them."""

    def quantize(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        step = weight.abs().max() / 127
        return {name: (weight / step).round().to(torch.int8), name.removesuffix("weight") + "step": step}

    model = save_quantized("llama", folder, quantize, {"quant_method": "whole numbers"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": [ARCHITECTURE]}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_linear(name):
                step = weight.abs().max() / 127
                weight.copy_((weight / step).round() * step)
    return reference(model, TOKENS)


@pytest.mark.usefixtures("family")
def test_offline(tmp_path: Path) -> None:
    expected, tolerance = _save(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    model = AutoBridge.from_hf_pretrained(tmp_path / "hf").load_megatron_model(tmp_path / "megatron")
    assert (full_logits(model, TOKENS) - expected).abs().max() <= tolerance


@pytest.mark.usefixtures("family")
def test_live_on_two_ranks(tmp_path: Path) -> None:
    """The export is plain."""
    expected, tolerance = _save(tmp_path / "hf")
    results = run_on({"tp": 2}, convert_and_run, tmp_path / "hf", TOKENS, {"tp": 2}, tmp_path / "out")
    assert all((logits - expected).abs().max() <= tolerance for logits in results)
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}


@pytest.mark.usefixtures("family")
def test_without_the_hook_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path)
    monkeypatch.delattr(BridgeOfWholeNumbers, "maybe_modify_loaded_hf_weight")
    with pytest.raises(QuantizationError, match=r"q_proj\.weight: I8 numbers .* without a scale"):
        AutoBridge.from_hf_pretrained(tmp_path).to_megatron_model(wrap_with_ddp=False)
