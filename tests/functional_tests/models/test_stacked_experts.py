"""Checkpoints that store experts as transformers holds them: one tensor for all experts of a layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge
from megatron.bridge.models.conversion import stacked_experts
from tests.functional_tests.test_multi_token_prediction import save_with_prediction_layer
from tests.parity import changed_tensors, convert_and_run, run_on
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS

STACKED = ".mlp.experts.down_proj"
EXPERT_LAYOUT = {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("glm4-moe", {}),
        ("glm4-moe", EXPERT_LAYOUT),
        ("glm-moe-dsa", {}),
        ("glm4-moe-lite", {"pp": 2}),
        ("deepseek-v3", {}),
        ("qwen3-moe", {"ep": 2, "etp": 1}),
        ("qwen3-next-dense-layers", {}),
        ("olmoe", {"tp": 2, "etp": 2, "sequence_parallel": True}),
    ],
)
def test_logits_and_export(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    model = TINY_MODELS[name].hf_model()
    model.save_pretrained(tmp_path / "hf", save_original_format=False)
    assert any(tensor.endswith(STACKED) for tensor in load_file(tmp_path / "hf" / "model.safetensors"))
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    expected, tolerance = reference(model, tokens)
    results = run_on(layout, convert_and_run, tmp_path / "hf", tokens, layout, tmp_path / "out")
    assert max((logits - expected).abs().max().item() for logits in results) <= tolerance
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


@pytest.mark.parametrize("name", ["glm4-moe", "qwen3-next"])
@pytest.mark.parametrize("is_on", [True, False])
def test_offline_with_a_prediction_layer(name: str, is_on: bool, tmp_path: Path) -> None:
    """The prediction layer's experts are stacked too, and left out together."""
    folder = tmp_path / "hf"
    save_with_prediction_layer(name, folder)
    path = folder / "model.safetensors"
    save_file(stack(load_file(path)), path, metadata={"format": "pt"})
    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider(load_weights=False)
    assert provider.mtp_num_layers == 1
    if not is_on:
        provider.mtp_num_layers = None
    from megatron.bridge.models.conversion import offline

    plan = offline.import_checkpoint(bridge._model_bridge, bridge.hf_pretrained, provider, tmp_path / "megatron")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    left_out = set() if is_on else plan.dropped.keys() - plan.tied.keys()
    assert any(tensor.endswith(STACKED) for tensor in left_out) != is_on
    assert changed_tensors(folder, tmp_path / "out") == sorted(left_out)


def stack(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with those of single experts stacked."""
    found = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    layers = {name.partition(".experts.")[0] for name in tensors.keys() - found.keys()}
    for experts in (f"{layer}.experts" for layer in layers):
        num_experts = sum(name.startswith(f"{experts}.") and "gate_proj" in name for name in tensors)
        gate, up, down = (
            torch.stack([tensors[f"{experts}.{i}.{part}_proj.weight"] for i in range(num_experts)])
            for part in ("gate", "up", "down")
        )
        found |= {f"{experts}.gate_up_proj": torch.cat([gate, up], dim=1), f"{experts}.down_proj": down}
    return found


def test_a_usual_checkpoint_is_read_as_before(tmp_path: Path) -> None:
    TINY_MODELS["glm4-moe"].save(tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    registry = bridge._model_bridge.registry()
    assert stacked_experts.as_stored(registry, bridge.hf_pretrained.state.infos) is registry
