"""Whole models as other libraries save them, compared with what transformers makes of the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from megatron.bridge.models.hf_pretrained.quantization.detection import detect
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource
from megatron.bridge.verification.bits import same_bits
from tests.unit_tests.hf_pretrained.quantization.formats import compressed
from tests.unit_tests.hf_pretrained.samples import tiny_llama


def _read(folder: Path) -> DequantizedSource:
    source = SafetensorsSource(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return DequantizedSource(source, detect(source.infos, config), torch.float32)


def _same(source: DequantizedSource, model: Any) -> None:
    expected = model.state_dict()
    assert source.keys() == expected.keys() and len(source.found.tensors) == 14
    assert [name for name in source if not same_bits(source[name], expected[name])] == []


@pytest.mark.parametrize(
    "config",
    [
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        BitsAndBytesConfig(load_in_8bit=True),
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_bitsandbytes(config: BitsAndBytesConfig, tmp_path: Path) -> None:
    # Rows are whole blocks of 64: with shorter ones bitsandbytes 0.50.2 takes the wrong scales on CPUs with AVX-512.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "quantised")
    _same(_read(tmp_path / "quantised"), model.dequantize(torch.float32))


def _save(folder: Path, parts: dict[str, dict[str, torch.Tensor]], config: dict[str, Any]) -> None:
    """The tiny model with some weights in parts: by the weight's name, the parts by what is added to their module."""
    model = tiny_llama().float()
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    for name, tensors in parts.items():
        del stored[name]
        stored |= {name.removesuffix("weight") + key: tensor for key, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(written))


def _linear_weights() -> dict[str, torch.Tensor]:
    model = tiny_llama()
    return {name: tensor.float() for name, tensor in model.state_dict().items() if name.endswith("proj.weight")}


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}),
        ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
        ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["num_bits"]),
)
def test_compressed_tensors(form: str, weights: dict[str, Any], tmp_path: Path) -> None:
    made = {name: compressed(form, tensor, **weights) for name, tensor in _linear_weights().items()}
    described = next(iter(made.values()))[2]
    group = {"targets": ["Linear"], "weights": described, "format": form}
    config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    config |= {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    _save(tmp_path, {name: parts for name, (parts, _, _) in made.items()}, config)
    run = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=run, dtype=torch.float32)
    _same(_read(tmp_path), model)


def test_fp8_in_blocks(tmp_path: Path) -> None:
    parts = {
        name: {
            "weight": (tensor * 64).to(torch.float8_e4m3fn),
            "weight_scale_inv": torch.rand(-(-tensor.shape[0] // 8), tensor.shape[1] // 8) / 64,
        }
        for name, tensor in _linear_weights().items()
    }
    config = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    _save(tmp_path, parts, config | {"modules_to_not_convert": ["lm_head"]})
    run = FineGrainedFP8Config(dequantize=True, weight_block_size=(8, 8), modules_to_not_convert=["lm_head"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=run, dtype=torch.float32)
    _same(_read(tmp_path), model)
