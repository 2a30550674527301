"""Models in packed formats on ranks: the logits of transformers' model with the numbers of the format's library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity import build_on, run_on
from tests.quantized import save_quantized
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.hf_pretrained.quantization.formats import compressed
from tests.unit_tests.hf_pretrained.quantization.words import AWQ_ORDER, less_one, packed

Tensors = dict[str, torch.Tensor]
# The stored tensors of a weight, and what they mean.
Quantize = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
GROUP = 8


def _compressed(form: str, **weights: Any) -> tuple[Quantize, dict[str, Any]]:
    def quantize(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        stored, meant, _ = compressed(form, weight, **weights)
        return {name.removesuffix("weight") + key: tensor for key, tensor in stored.items()}, meant

    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    return quantize, {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def _bitsandbytes(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, None, None, 32, True, "nf4")
    stored = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: codes, **stored}, dequantize_4bit(codes, state)


def _words(method: str) -> tuple[Quantize, dict[str, Any]]:
    def quantize(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        cells = weight.unflatten(1, (-1, GROUP))
        low, high = cells.amin(-1), cells.amax(-1)
        scale = ((high - low) / 15).half()
        zero = (-low / scale.float()).round().clamp(0, 15)
        codes = (cells / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
        meant = ((codes - zero[..., None]) * scale.float()[..., None]).flatten(1)
        stem, numbers, zeros = name.removesuffix("weight"), codes.flatten(1).int(), zero.T.int().tolist()
        stored = {f"{stem}scales": scale.T.contiguous()}
        if method == "awq":
            stored[f"{stem}qweight"] = packed(numbers.T.tolist(), 4, AWQ_ORDER)
            stored[f"{stem}qzeros"] = packed(zeros, 4, AWQ_ORDER)
        else:
            stored[f"{stem}qweight"] = packed(numbers.tolist(), 4).T.contiguous()
            stored[f"{stem}qzeros"] = less_one(packed(zeros, 4), 4)
            stored[f"{stem}g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
        return stored, meant

    return quantize, {"quant_method": method, "bits": 4, "group_size": GROUP}


FORMATS: dict[str, tuple[Quantize, dict[str, Any]]] = {
    "pack-quantized": _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP),
    "int-quantized": _compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "mxfp4": _compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
    "nf4": (_bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "gptq": _words("gptq"),
    "awq": _words("awq"),
}


def _logits(folder: Path, tokens: torch.Tensor, layout: dict[str, Any]) -> torch.Tensor:
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.forward import full_logits

    return full_logits(build_on(AutoBridge.from_hf_pretrained(folder), layout), tokens)


@pytest.mark.parametrize(
    ("model", "layout"),
    [("llama", {}), ("llama", {"tp": 2}), ("qwen3-moe", {"ep": 2, "etp": 1})],
    ids=["tp1", "tp2", "ep2"],
)
@pytest.mark.parametrize("form", FORMATS)
def test_logits(form: str, model: str, layout: dict[str, Any], tmp_path: Path) -> None:
    quantize, config = FORMATS[form]
    meant: Tensors = {}

    def store(name: str, weight: torch.Tensor) -> Tensors:
        stored, meant[name] = quantize(name, weight)
        return stored

    tiny, plain = TINY_MODELS[model], tmp_path / "plain"
    hf_model = save_quantized(model, tmp_path / "hf", store, config)
    tiny.save(plain)
    weights = load_file(plain / "model.safetensors") | {name: tensor.float() for name, tensor in meant.items()}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, tiny.seq_length), generator=generator)
    with torch.no_grad():
        reference = type(hf_model).from_pretrained(plain, dtype=torch.float32).eval()(tokens).logits
    assert (reference - hf_model(tokens).logits).abs().max().item() > 100 * tiny.tolerance
    for logits in run_on(layout, _logits, tmp_path / "hf", tokens, layout):
        assert (logits - reference).abs().max().item() <= tiny.tolerance
