"""Checkpoints whose tensors have other names than those that are published, but names that transformers reads."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from megatron.bridge import AutoBridge
from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion import stored_names
from megatron.bridge.models.conversion.registered import find_bridge
from tests.functional_tests.test_multi_token_prediction import save_with_prediction_layer
from tests.parity import changed_tensors, convert_and_run, run_on
from tests.rounding import reference
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS

STACKED = ".mlp.experts.down_proj"
EXPERT_LAYOUT = {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True}


FORMS: dict[str, Callable[[str], str]] = {
    "of transformers' modules": str,
    "of the base model": lambda name: re.sub(r"^(model|backbone)\.", "", name),
    "published, of the base model": lambda name: re.sub(r"^(model|backbone)\.", "", name),
    "with the prefix twice": lambda name: f"{'backbone' if name.startswith('backbone') else 'model'}.{name}",
}


@pytest.mark.parametrize(
    ("name", "form", "layout"),
    [
        ("glm4-moe", "of transformers' modules", {}),
        ("glm4-moe", "of transformers' modules", EXPERT_LAYOUT),
        ("glm-moe-dsa", "of transformers' modules", {}),
        ("glm4-moe-lite", "of transformers' modules", {"pp": 2}),
        ("deepseek-v3", "of transformers' modules", {}),
        ("qwen3-moe", "of transformers' modules", {"ep": 2, "etp": 1}),
        ("qwen3-next-dense-layers", "of transformers' modules", {}),
        ("olmoe", "of transformers' modules", {"tp": 2, "etp": 2, "sequence_parallel": True}),
        ("mixtral", "of transformers' modules", {"ep": 2, "etp": 1}),
        ("nemotron-3", "of transformers' modules", {"ep": 2, "etp": 1}),
        ("ernie-4.5-moe", "of transformers' modules", {}),
        ("exaone-moe", "of transformers' modules", {}),
        ("granite-moe", "of transformers' modules", {}),
        ("lfm2-moe", "of transformers' modules", {}),
        ("mimo-v2-flash", "of transformers' modules", {}),
        ("minimax-m2", "of transformers' modules", {}),
        ("mixtral", "of the base model", {}),
        ("mixtral", "published, of the base model", {}),
        ("nemotron-3", "published, of the base model", {}),
        ("qwen3", "of the base model", {"tp": 2}),
        ("nemotron-h", "of the base model", {}),
        ("mamba2", "of the base model", {}),
        ("llama", "with the prefix twice", {"pp": 2}),
    ],
)
def test_logits_and_export(name: str, form: str, layout: dict[str, Any], tmp_path: Path) -> None:
    model = TINY_MODELS[name].hf_model()
    model.save_pretrained(tmp_path / "hf", save_original_format=form.startswith("published"))
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {FORMS[form](stored): tensor for stored, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    expected, tolerance = reference(model, tokens)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        assert (read(tokens).logits - expected).abs().max().item() <= tolerance
    results = run_on(layout, convert_and_run, tmp_path / "hf", tokens, layout, tmp_path / "out")
    assert max((logits - expected).abs().max().item() for logits in results) <= tolerance
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_of_every_family_is_known(form: str) -> None:
    """By the names alone, and none is taken for another."""
    for name in FIRST_VARIANTS:
        config = TINY_MODELS[name].hf_config()
        bridge = find_bridge(config).bridge_class()
        bridge.hf_config = config
        model = TINY_MODELS[name].empty_model()
        state = model.state_dict()
        original = [*revert_weight_conversion(model, state)] if form.startswith("published") else [*state]
        begins = "backbone." if any(tensor.startswith("backbone.") for tensor in original) else "model."
        stored = [begins + tensor if "twice" in form else FORMS[form](tensor) for tensor in original]
        where = partial(stored_names.transformers_names, config.model_type)
        plain, renamed = (stored_names.as_stored(bridge.registry(), names, where, name) for names in (original, stored))
        for before, after in zip(original, stored, strict=True):
            found, expected = renamed.hf_to_megatron_lookup(after), plain.hf_to_megatron_lookup(before)
            assert (found and found.megatron_param) == (expected and expected.megatron_param), (name, after)
            assert expected or renamed.drop_reason(after), (name, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: f"_orig_mod.{name}", r"begins with '_orig_mod\.'.*torch\.compile.*model\._orig_mod\.save_pre"),
        (lambda name: f"module.{name}", r"data parallelism.*model\.module\.save_pretrained"),
        (lambda name: f"base_model.model.{name}", r"peft.*model\.merge_and_unload\(\)\.save_pretrained"),
        (lambda name: name.replace("q_proj.", "q_proj.lora_A.default."), r"have '\.lora_A\.'.*merge_and_unload"),
    ],
)
def test_names_of_wrapped_models_are_refused(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoBridge.from_hf_pretrained(tmp_path).to_megatron_provider()


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
    left_out = set() if is_on else plan.dropped.keys()
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
    assert stored_names.as_stored(registry, bridge.hf_pretrained.state.infos, pytest.fail, "tiny") is registry
