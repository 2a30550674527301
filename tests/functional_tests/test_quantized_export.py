"""Exports in a quantised form: the source's bytes where nothing changed, new scales elsewhere, read by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import FineGrainedFP8Config, Mxfp4Config

from megatron.bridge import AutoBridge
from megatron.bridge.errors import QuantizationError
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.models.hf_pretrained.quantization import quantize
from tests.parity import build_on, run_on
from tests.quantized import FP8_BLOCK, in_bytes, is_linear, save_quantized, stored_bytes
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS

TOKENS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are smaller than blocks of 128."""
    monkeypatch.setattr(quantize.FP8Quantizer.__init__, "__defaults__", ((FP8_BLOCK, FP8_BLOCK),))


def _with_scales_of_activations(folder: Path) -> None:
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored["model.layers.0.self_attn.q_proj.activation_scale"] = torch.tensor(0.5)
    save_file(stored, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["llama-odd-vocabulary", "qwen3-moe", "qwen3-next", "deepseek-v3.2"])
def test_the_same_bytes_offline(name: str, tmp_path: Path) -> None:
    """Of some models more is quantised than their linear layers."""
    further = ("lm_head.weight", "in_proj_qkvz.weight", "indexer.wq_b.weight")
    save_quantized(name, tmp_path / "hf", quantizes=lambda tensor: is_linear(tensor) or tensor.endswith(further))
    _with_scales_of_activations(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out", quantization="source")
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "hf")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "hf" / "config.json").read_bytes()


def _export_live(folder: Path, layout: dict[str, Any], save_to: Path) -> dict[str, Any]:
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = build_on(bridge, layout)
    bridge.save_hf_pretrained(model, save_to, quantization="source")
    return {name: in_bytes(tensor) for name, tensor in bridge.export_hf_weights(model, quantization="source")}


@pytest.mark.parametrize("layout", [{}, {"tp": 2}, {"ep": 2, "etp": 1}], ids=str)
def test_the_same_bytes_live(layout: dict[str, Any], tmp_path: Path) -> None:
    save_quantized("qwen3-moe", tmp_path / "hf")
    streamed = run_on(layout, _export_live, tmp_path / "hf", layout, tmp_path / "out")
    expected = stored_bytes(tmp_path / "hf")
    assert all(found == expected for found in streamed)
    assert stored_bytes(tmp_path / "out") == expected


def test_what_was_trained_gets_new_scales(tmp_path: Path) -> None:
    """Of two weights one is changed: it is quantised anew, and everything else keeps its bytes."""
    save_quantized("llama", tmp_path / "hf")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    changed = "model.layers.1.self_attn.o_proj.weight"
    with torch.no_grad():
        model[0].decoder.layers[1].self_attention.linear_proj.weight.mul_(1.5)
    bridge.save_hf_pretrained(model, tmp_path / "out", quantization="source")
    before, after = stored_bytes(tmp_path / "hf"), stored_bytes(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {changed, f"{changed}_scale_inv"}
    scales = [load_file(tmp_path / folder / "model.safetensors")[f"{changed}_scale_inv"] for folder in ("hf", "out")]
    torch.testing.assert_close(scales[1], 1.5 * scales[0])
    again = AutoBridge.from_hf_pretrained(tmp_path / "out").hf_pretrained.state[changed]
    weight = model[0].decoder.layers[1].self_attention.linear_proj.weight
    torch.testing.assert_close(again, weight.detach(), rtol=2**-4, atol=0)


def test_a_changed_weight_in_a_form_that_cannot_be_made(tmp_path: Path) -> None:
    def int8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}

    save_quantized("llama", tmp_path / "hf", int8, {"quant_method": "compressed-tensors"})
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    bridge.save_hf_pretrained(model, tmp_path / "same", quantization="source")
    assert stored_bytes(tmp_path / "same") == stored_bytes(tmp_path / "hf")
    with torch.no_grad():
        model[0].decoder.layers[0].mlp.linear_fc2.weight.mul_(2)
    with pytest.raises(QuantizationError, match=r"layers\.0\.mlp\.down_proj\.weight: was changed, and its form .*INT8"):
        dict(bridge.export_hf_weights(model, quantization="source"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["llama", "deepseek-v3"])
def test_fp8_is_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    TINY_MODELS[name].save(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "fp8", quantization="fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "model.embed_tokens"} <= set(config["modules_to_not_convert"])
    hf_model = getattr(transformers, TINY_MODELS[name].architecture).from_pretrained(
        tmp_path / "fp8",
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=FineGrainedFP8Config(**{**config, "dequantize": True}),
    )
    model = AutoBridge.from_hf_pretrained(tmp_path / "fp8").to_megatron_model(wrap_with_ddp=False)
    expected, tolerance = reference(hf_model.eval(), TOKENS)
    assert (full_logits(model, TOKENS) - expected).abs().max() <= tolerance
    plain = full_logits(bridge.to_megatron_model(wrap_with_ddp=False), TOKENS)
    assert 1e-3 < (plain - expected).abs().mean() < 0.1, "quantised, but the same model"


def test_mxfp4_is_loaded_by_transformers(tmp_path: Path) -> None:
    TINY_MODELS["gpt-oss"].save(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "mxfp4", quantization="mxfp4")
    stored = load_file(tmp_path / "mxfp4" / "model.safetensors")
    assert stored["model.layers.0.mlp.experts.down_proj_blocks"].dtype == torch.uint8
    hf_model = transformers.GptOssForCausalLM.from_pretrained(
        tmp_path / "mxfp4",
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    )
    model = AutoBridge.from_hf_pretrained(tmp_path / "mxfp4").to_megatron_model(wrap_with_ddp=False)
    expected, tolerance = reference(hf_model.eval(), TOKENS)
    assert (full_logits(model, TOKENS) - expected).abs().max() <= tolerance
    again = AutoBridge.from_hf_pretrained(tmp_path / "mxfp4")
    again.save_hf_pretrained(model, tmp_path / "again", quantization="source")
    assert stored_bytes(tmp_path / "again") == stored_bytes(tmp_path / "mxfp4")


@pytest.mark.usefixtures("small_blocks")
def test_live_and_offline_are_the_same(tmp_path: Path) -> None:
    TINY_MODELS["qwen3-moe"].save(tmp_path / "hf")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "offline", quantization="fp8")
    bridge.save_hf_pretrained(bridge.to_megatron_model(wrap_with_ddp=False), tmp_path / "live", quantization="fp8")
    assert stored_bytes(tmp_path / "live") == stored_bytes(tmp_path / "offline")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("live", "offline")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("form", "expected"), [("int3", "quantization 'int3': expected fp8, mxfp4, source"), ("source", "is not quantised")]
)
def test_unknown_forms(form: str, expected: str, tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    with pytest.raises(QuantizationError, match=expected):
        bridge.save_hf_pretrained(model, tmp_path / "out", quantization=form)
    assert not (tmp_path / "out").exists()


def test_a_config_alone_that_says_quantised(tmp_path: Path) -> None:
    """As transformers gives it for a quantised model: exports are plain, and say so."""
    save_quantized("llama", tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.quantization_config
    bridge = AutoBridge.from_hf_config(config)
    model = bridge.to_megatron_model(load_weights=False, wrap_with_ddp=False)
    bridge.save_hf_pretrained(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
