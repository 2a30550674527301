"""Conversions of dtype: what does not fit is an error by name, and what is held in float32 stays as it is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge
from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.conversion.dequantize import dequantize_checkpoint
from megatron.bridge.verification import roundtrip
from tests.parity import build_on, changed_tensors, run_on
from tests.quantized import save_quantized
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS

LARGE = "model.norm.weight"
TOO_LARGE = rf"{LARGE}: 1 of 64 numbers are outside of the range of torch\.float16 \(up to 65504; found 70144\)"


def _edit(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _with_large_numbers(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name == LARGE:
        tensor[3] = -70144
    return tensor


def _live(folder: Path, **fields: Any) -> tuple[AutoBridge, Any]:
    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in fields.items():
        setattr(provider, name, value)
    return bridge, provider.provide_distributed_model(wrap_with_ddp=False)


def _import(folder: Path, out: Path) -> None:
    AutoBridge.import_ckpt(folder, out / "half", torch_dtype=torch.float16)


def _export(folder: Path, out: Path) -> None:
    AutoBridge.import_ckpt(folder, out / "megatron")
    AutoBridge.from_hf_pretrained(folder).export_ckpt(out / "megatron", out / "half", torch_dtype=torch.float16)


def _load(folder: Path, out: Path) -> None:
    _live(folder, fp16=True, bf16=False, params_dtype=torch.float16)


def _stream(folder: Path, out: Path) -> None:
    bridge, model = _live(folder)
    list(bridge.export_hf_weights(model, weight_dtype=torch.float16))


def _save(folder: Path, out: Path) -> None:
    bridge, model = _live(folder)
    bridge.save_hf_pretrained(model, out / "half", weight_dtype=torch.float16)


def _save_ranges(folder: Path, out: Path) -> None:
    bridge, model = _live(folder)
    bridge.save_hf_pretrained(model, out / "half", weight_dtype=torch.float16, distributed_save=True)


WAYS = [_import, _export, _load, _stream, _save, _save_ranges]


@pytest.mark.parametrize("way", WAYS)
def test_numbers_outside_of_the_range_are_an_error(way: Callable[[Path, Path], None], tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf", torch.bfloat16)
    _edit(tmp_path / "hf", _with_large_numbers)
    with pytest.raises(CheckpointError, match=TOO_LARGE):
        way(tmp_path / "hf", tmp_path)
    assert not (tmp_path / "half" / "model.safetensors").exists()
    assert not (tmp_path / "half" / "latest_checkpointed_iteration.txt").exists()


def test_force(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf", torch.bfloat16)
    _edit(tmp_path / "hf", _with_large_numbers)
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "half", torch_dtype=torch.float16, force=True)
    model = AutoBridge.from_hf_pretrained(tmp_path / "hf").load_megatron_model(tmp_path / "half")
    assert int(model[0].state_dict()["decoder.final_layernorm.weight"].isinf().sum()) == 1


def test_dequantized_numbers_outside_of_the_range(tmp_path: Path) -> None:
    save_quantized("llama", tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    _edit(tmp_path / "hf", lambda key, tensor: 1e6 * tensor if key == f"{name}_scale_inv" else tensor)
    with pytest.raises(
        CheckpointError, match=rf"{name}: \d+ of \d+ numbers are outside of the range of torch\.float16"
    ):
        dequantize_checkpoint(tmp_path / "hf", tmp_path / "plain", dtype=torch.float16)
    dequantize_checkpoint(tmp_path / "hf", tmp_path / "plain", dtype=torch.bfloat16)


def _bias_of(name: str) -> str | None:
    """The end of the names of router biases, if a model has any that choose experts."""
    names = TINY_MODELS[name].empty_model().state_dict()
    ends = ("e_score_correction_bias", "expert_bias")
    return next((end for end in ends if any(tensor.endswith(end) for tensor in names)), None)


BIASES = {name: end for name in FIRST_VARIANTS if (end := _bias_of(name)) is not None}


def _save_mixed(name: str, folder: Path) -> None:
    """A model in bfloat16 with the biases of routers in float32, as such models are published."""
    TINY_MODELS[name].save(folder, torch.bfloat16)
    generator = torch.Generator().manual_seed(7)
    _edit(folder, lambda key, t: torch.randn(t.shape, generator=generator) if key.endswith(BIASES[name]) else t)


def _refit(folder: Path, layout: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = build_on(bridge, layout)
    bridge.load_hf_weights(model)  # once more, into a wrapped model
    bridge.save_hf_pretrained(model, out)
    bridge.save_megatron_model(model, out.parent / "saved")
    return {key: tensor.clone() for key, tensor in bridge.export_hf_weights(model, weight_dtype=torch.bfloat16)}


@pytest.mark.parametrize("name", BIASES)
def test_biases_that_choose_experts_stay_in_float32(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    _save_mixed(name, folder)
    source = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in source.values()} == {torch.bfloat16, torch.float32}
    layout = {"ep": 2, "etp": 1}
    for streamed in run_on(layout, _refit, folder, layout, tmp_path / "live"):
        assert all(torch.equal(streamed[key], tensor) for key, tensor in source.items() if key.endswith(BIASES[name]))
    assert changed_tensors(folder, tmp_path / "live") == []
    AutoBridge.import_ckpt(folder, tmp_path / "megatron", torch_dtype=torch.bfloat16)
    bridge = AutoBridge.from_hf_pretrained(folder)
    for checkpoint in ("megatron", "saved"):
        bridge.export_ckpt(tmp_path / checkpoint, tmp_path / f"{checkpoint}-out", torch_dtype=torch.bfloat16)
        assert changed_tensors(folder, tmp_path / f"{checkpoint}-out") == []
    assert roundtrip(folder).passes


def test_transformers_holds_these_biases_in_float32(tmp_path: Path) -> None:
    _save_mixed("deepseek-v3", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    held = {key: t for key, t in model.state_dict().items() if key.endswith("e_score_correction_bias")}
    assert held and all(torch.equal(t, stored[key]) for key, t in held.items())


def test_a_round_trip_sees_what_a_narrower_dtype_loses(tmp_path: Path) -> None:
    """A norm in float32, which the model, mostly in bfloat16, does not hold so."""
    TINY_MODELS["llama"].save(tmp_path, torch.bfloat16)
    _edit(tmp_path, lambda key, tensor: tensor.float() if key == LARGE else tensor)
    assert roundtrip(tmp_path).passes  # the values are the same
    _edit(tmp_path, lambda key, tensor: tensor + 1e-4 if key == LARGE else tensor)
    (mismatch,) = roundtrip(tmp_path).mismatches
    assert mismatch.startswith(f"{LARGE}: dtype torch.bfloat16, in the source torch.float32")
