"""What is quantised, by the config and by the tensors, and whether they agree. Weights are counted, not codes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge.discovery import ModelReport, inspect_model
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.discovery.conftest import edit_config

BLOCK = 16
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}


def quantize(
    folder: Path, config: Mapping[str, object] | None = FP8, lost: str | None = None
) -> dict[str, torch.Tensor]:
    """Stores the projections as FP8 with a scale for each block, except that the tensor `lost` gets none."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        if name != lost:
            tensors[f"{name}_scale_inv"] = torch.ones(-(-rows // BLOCK), -(-columns // BLOCK))
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        edit_config(folder, quantization_config=config)
    return tensors


def inspect_quantized(
    folder: Path, name: str = "qwen3-moe", config: Mapping[str, object] | None = FP8, lost: str | None = None
) -> tuple[ModelReport, ModelReport]:
    """The reports before and after quantisation."""
    TINY_MODELS[name].save(folder)
    before = inspect_model(folder)
    quantize(folder, config, lost)
    return before, inspect_model(folder)


@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3"])
def test_counts_and_rules_are_those_of_the_weights(name: str, tmp_path: Path) -> None:
    before, after = inspect_quantized(tmp_path, name)
    assert after.parameters.by_category == before.parameters.by_category
    assert after.parameters.active == before.parameters.active
    assert after.support.num_matched == before.support.num_matched and not after.support.unmatched
    assert after.support.unknown_fields == after.support.foreign_fields == []
    assert after.layouts is not None and before.layouts is not None
    assert after.layouts.rows == before.layouts.rows
    quantization = after.quantization
    projections = sum(name.endswith("_proj.weight") for name in load_file(tmp_path / "model.safetensors"))
    assert quantization.formats == {f"FP8 (E4M3), a scale per block of {BLOCK} x {BLOCK}": projections}
    assert list(quantization.companions.values()) == [{"weight": "weight", "scale": "weight_scale_inv"}]
    assert quantization.agree and quantization.problems == quantization.disagreements == []
    assert quantization.stated is not None and quantization.stated.startswith("fp8 (fmt e4m3")
    assert set(after.parameters.bytes_by_dtype["experts"]) == {"F8_E4M3"}
    stored = load_file(tmp_path / "model.safetensors")
    assert after.parameters.stored_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert (
        sum(sum(kinds.values()) for kinds in after.parameters.bytes_by_dtype.values()) == after.parameters.stored_bytes
    )


def test_tensors_are_quantised_and_the_config_says_nothing(tmp_path: Path) -> None:
    _, report = inspect_quantized(tmp_path, config=None)
    assert report.quantization.agree is False
    assert "the config has no quantization_config" in report.quantization.disagreements[0]


def test_the_config_says_so_and_no_tensor_is_quantised(qwen3_folder: Path) -> None:
    edit_config(qwen3_folder, quantization_config=FP8)
    report = inspect_model(qwen3_folder)
    assert report.quantization.agree is False and "no tensor is quantised" in report.quantization.disagreements[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**FP8, "weight_block_size": [32, 32]}, r"32(, | x )32"),
        (
            {**FP8, "modules_to_not_convert": ["model.layers.1.self_attn.q_proj"]},
            r"leaves model\.layers\.1\.self_attn\.q_proj",
        ),
        ({"quant_method": "mxfp4"}, r"mxfp4 \(MXFP4\)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"modelopt \(NVFP4\)"),
    ],
)
def test_config_and_tensors_that_disagree(config: dict[str, object], words: str, tmp_path: Path) -> None:
    _, report = inspect_quantized(tmp_path, config=config)
    assert report.quantization.agree is False
    said = (*report.quantization.disagreements, *report.quantization.problems)
    assert any(re.search(words, text) for text in said)


def test_a_scale_that_one_expert_lacks_is_named(tmp_path: Path) -> None:
    lost = "model.layers.2.mlp.experts.3.up_proj.weight"
    _, report = inspect_quantized(tmp_path, lost=lost)
    assert len(report.quantization.problems) == 1 and lost in report.quantization.problems[0]
    assert lost in report.next_step and "cannot be read as weights" in report.next_step


def test_mxfp4_experts_of_gpt_oss(tmp_path: Path) -> None:
    TINY_MODELS["gpt-oss"].save(tmp_path)
    before = inspect_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, columns, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.zeros(num_experts, rows, columns // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(num_experts, rows, columns // 32, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    after = inspect_model(tmp_path)
    assert after.quantization.agree and after.quantization.formats == {"MXFP4, a scale per group of 32": 8}
    assert after.parameters.by_category == before.parameters.by_category
    assert after.support.num_matched == before.support.num_matched
    assert after.next_step.startswith("megatron-bridge import")


def test_scales_of_activations_are_left_out_with_a_reason(tmp_path: Path) -> None:
    TINY_MODELS["qwen3-moe"].save(tmp_path)
    tensors = quantize(tmp_path)
    name = "model.layers.0.self_attn.q_proj.input_scale"
    save_file(tensors | {name: torch.ones(())}, tmp_path / "model.safetensors")
    report = inspect_model(tmp_path)
    assert report.quantization.dropped == {"a scale of activations; weights are not made of it": 1}
    assert report.quantization.agree and not report.support.unmatched


def test_an_index_without_its_files(tmp_path: Path) -> None:
    """Rules match the names, scales are known by their names, and parameters are counted from the config."""
    TINY_MODELS["qwen3-moe"].save(tmp_path)
    before = inspect_model(tmp_path)
    names = quantize(tmp_path)
    strange = "model.layers.1.memory.weight"
    index = {"weight_map": dict.fromkeys([*names, strange], "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    report = inspect_model(tmp_path)
    assert report.support.unmatched == {strange: 1}
    assert report.support.num_matched == before.support.num_matched
    assert report.parameters.is_expected and report.parameters.by_category == before.parameters.by_category
    assert "1 of 1 weight files are absent" in report.problems[0]
