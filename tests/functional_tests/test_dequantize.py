"""`dequantize_checkpoint`, its command and Ministral 3's script: a plain folder that loads, and nothing half done."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from megatron.bridge import dequantize_checkpoint
from megatron.bridge.cli.app import main
from megatron.bridge.errors import CheckpointError, QuantizationError
from tests.programs import TIMEOUT
from tests.quantized import FP8_CONFIG, in_bytes, save_quantized
from tests.tiny_models import TINY_MODELS

SCRIPT = Path(__file__).parents[2] / "examples" / "models" / "mistral" / "ministral3" / "dequant_fp8_for_bridge.py"


def test_the_weights_that_transformers_makes(tmp_path: Path) -> None:
    save_quantized("llama", tmp_path / "hf")
    weights = dequantize_checkpoint(tmp_path / "hf", tmp_path / "out")
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, quantization_config=FineGrainedFP8Config(**FP8_CONFIG, dequantize=True)
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = reference.state_dict()
    assert written.keys() == expected.keys()
    assert all(in_bytes(written[name]) == in_bytes(expected[name]) for name in written)
    assert len(weights.found.tensors) == 28
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "out"))
    assert before.pop("quantization_config") == FP8_CONFIG
    assert after == before


def _split(folder: Path) -> None:
    """Cuts the weights into two files, the scales apart from the weights."""
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + name.endswith('_scale_inv')}-of-00002.safetensors" for name in stored}
    # The file of the scales has a weight as well: one that holds none would vanish.
    files["lm_head.weight"] = "model-00002-of-00002.safetensors"
    for filename in set(files.values()):
        part = {name: tensor for name, tensor in stored.items() if files[name] == filename}
        save_file(part, folder / filename, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_in_another_dtype_and_in_parts(tmp_path: Path) -> None:
    """The files keep their names; what is not quantised keeps its dtype."""
    save_quantized("qwen3-moe", tmp_path / "hf")
    _split(tmp_path / "hf")
    argv = ["dequantize", str(tmp_path / "hf"), str(tmp_path / "out"), "--dtype", "bf16", "--memory", "1MB"]
    assert main([*argv, "--part", "0/2"]) == 0
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--part", "1/2"]) == 0
    written = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert load_file(tmp_path / "out" / "model-00002-of-00002.safetensors").keys() == {"lm_head.weight"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == {*written, "lm_head.weight"}
    assert written["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert written["model.norm.weight"].dtype == torch.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_to_do(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    with pytest.raises(QuantizationError, match="no tensor is quantised"):
        dequantize_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no scale", r"q_proj\.weight: F8_E4M3 numbers \[.*\] without a scale"),
        ("no weight", r"q_proj\.weight_scale_inv: .*not in the checkpoint"),
        ("shape", r"q_proj\.weight_scale_inv: .*\[3, 5\]"),
        ("dtype", r"q_proj\.weight_scale_inv: .*I32"),
    ],
)
def test_what_cannot_be_read_is_named(change: str, message: str, tmp_path: Path) -> None:
    save_quantized("llama", tmp_path / "hf")
    path, weight = tmp_path / "hf" / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(path)
    scale = stored.pop(f"{weight}_scale_inv")
    if change == "no weight":
        stored[f"{weight}_scale_inv"] = scale
        del stored[weight]
    elif change == "shape":
        stored[f"{weight}_scale_inv"] = torch.ones(3, 5)
    elif change == "dtype":
        stored[f"{weight}_scale_inv"] = scale.to(torch.int32)
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(QuantizationError, match=message):
        dequantize_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_does_not_overwrite(tmp_path: Path) -> None:
    save_quantized("llama", tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match="out"):
        dequantize_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_script_of_ministral_3(tmp_path: Path) -> None:
    """Scales for whole tensors, and scales of activations, which are left out."""

    def quantize(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.abs().max() / 448
        activation = f"{name.removesuffix('weight')}activation_scale"
        return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale, activation: 2 * scale}

    model = save_quantized("ministral3", tmp_path / "hf", quantize, {**FP8_CONFIG, "weight_block_size": None})
    command = [sys.executable, str(SCRIPT), str(tmp_path / "hf"), str(tmp_path / "out")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    assert printed == f"wrote {tmp_path / 'out'}: 28 tensors were quantised\n"
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(written[name], weight, rtol=2**-4, atol=2**-9 * float(weight.abs().max()))
