"""Numbers that get past the detector of quantised tensors, and are no weights, are noticed before a conversion."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge
from megatron.bridge.cli.app import main
from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization import source
from megatron.bridge.models.hf_pretrained.quantization.detection import Detection
from tests.quantized import save_quantized
from tests.tiny_models import TINY_MODELS


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that finds nothing."""
    monkeypatch.setattr(source, "detect", lambda stored, config: Detection())


def _raw_numbers(folder: Path) -> None:
    """A model with quantised numbers under the names of weights, and their scales gone."""
    save_quantized("llama", folder)
    stored = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith("_scale_inv")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.usefixtures("blind")
def test_raw_numbers_stop_an_import(tmp_path: Path) -> None:
    _raw_numbers(tmp_path / "hf")
    with pytest.raises(QuantizationError, match=r"do not look like weights; nothing was converted") as error:
        AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron", torch_dtype=torch.float32)
    assert "layers.0.self_attn.q_proj.weight: standard deviation" in str(error.value)
    assert not (tmp_path / "megatron").exists()
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron", torch_dtype=torch.float32, force=True)
    assert (tmp_path / "megatron").exists()


@pytest.mark.usefixtures("blind")
def test_raw_numbers_stop_a_load(tmp_path: Path) -> None:
    _raw_numbers(tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    model = bridge.to_megatron_model(load_weights=False, wrap_with_ddp=False)
    before = [parameter.detach().clone() for parameter in model[0].parameters()]
    with pytest.raises(QuantizationError, match="o_proj"):
        bridge.load_hf_weights(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model[0].parameters(), strict=True)), "nothing was changed"
    bridge.load_hf_weights(model, force=True)


@pytest.mark.usefixtures("blind")
def test_force_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _raw_numbers(tmp_path / "hf")
    argv = ["import", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--dtype", "fp32"]
    assert main(argv) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*argv, "--force"]) == 0


def _change(folder: Path, name: str, number: float | torch.Tensor) -> None:
    TINY_MODELS["llama"].save(folder)
    stored = load_file(folder / "model.safetensors")
    stored[name].mul_(number)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"])
def test_numbers_that_are_not_finite(name: str, number: float, tmp_path: Path) -> None:
    _change(tmp_path / "hf", name, number)
    with pytest.raises(QuantizationError, match=rf"{name}: holds NaN or Inf"):
        AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")


@pytest.mark.parametrize(("factor", "passes"), [(0.05, True), (10.0, True), (30.0, False), (100.0, False)])
def test_the_size_of_a_matrix(factor: float, passes: bool, tmp_path: Path) -> None:
    """The tiny models' matrices have a standard deviation of 0.08."""
    _change(tmp_path / "hf", "model.layers.1.self_attn.k_proj.weight", factor)
    if passes:
        AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    else:
        with pytest.raises(QuantizationError, match=r"layers\.1\.self_attn\.k_proj\.weight"):
            AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")


def test_families_with_unusual_weights_pass(tmp_path: Path) -> None:
    """Convolutions, decay rates, routers, embeddings with a factor."""
    for name in ("mamba2", "qwen3.5", "gemma4-everything", "deepseek-v3"):
        TINY_MODELS[name].save(tmp_path / name)
        AutoBridge.import_ckpt(tmp_path / name, tmp_path / f"{name}-megatron")
