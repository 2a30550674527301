"""A checkpoint in each quantised format: the logits of transformers, with the numbers of the format's library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.models.hf_pretrained.quantization.quantize import MXFP4Quantizer
from tests.parity import convert_and_run, run_on
from tests.quantized import FP8_BLOCK, FP8_CONFIG, Tensors, fp8_blocks, save_quantized
from tests.rounding import reference
from tests.unit_tests.hf_pretrained.quantization.formats import compressed
from tests.unit_tests.hf_pretrained.quantization.words import AWQ_ORDER, less_one, packed_words

TOKENS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
GROUP = 32

# A weight `[N, K]` to what is stored, by how the names go on behind the module's, and the numbers that it stands for.
Form = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


def _fp8_block(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    stored = fp8_blocks("weight", weight)
    scale = stored["weight_scale_inv"].repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return stored, stored["weight"].float() * scale[: weight.shape[0], : weight.shape[1]]


def _fp8_tensor(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """As Ministral 3 and ModelOpt, with scales of activations."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.3)}, codes.float() * scale


def _compressed(form: str, **weights: Any) -> Form:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        dtype = torch.bfloat16 if weights["num_bits"] == 4 and weights["type"] == "float" else torch.float32
        stored, expected, _ = compressed(form, weight.to(dtype), **weights)
        return stored, expected.float()

    return quantize


def _nvfp4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The library's codes in float32's arithmetic; its own is bfloat16's."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    made, _, _ = compressed("nvfp4-pack-quantized", weight.bfloat16(), **NVFP4)
    numbers = unpack_fp4_from_uint8(made["weight_packed"], *weight.shape, torch.float32)
    scale = made["weight_scale"].float() / made["weight_global_scale"]
    return made, numbers * scale.repeat_interleave(16, 1)


def _modelopt_nvfp4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The same codes, with a scale of the whole tensor that multiplies."""
    made, expected = _nvfp4(weight)
    overall = 1 / made["weight_global_scale"].reshape(())
    stored = {"weight": made["weight_packed"], "weight_scale": made["weight_scale"], "weight_scale_2": overall}
    return stored, expected


def _whole_numbers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes from 0 to 15 `[N, K]`, scales `[K / GROUP, N]`, and the numbers that they stand for with a zero of 8."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    codes = (groups / scale).round().clamp(-8, 7)
    return (codes + 8).long().flatten(1), scale[..., 0].T.half(), (codes * scale).flatten(1)


def _gptq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, expected = _whole_numbers(weight)
    zeros = packed_words(torch.full(scales.shape, 8).tolist(), 4)
    order = (torch.arange(weight.shape[1]) // GROUP).int()
    qweight = packed_words(codes.tolist(), 4).T
    return {"qweight": qweight, "qzeros": less_one(zeros, 4), "scales": scales, "g_idx": order}, expected


def _awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, expected = _whole_numbers(weight)
    zeros = packed_words(torch.full(scales.shape, 8).tolist(), 4, AWQ_ORDER)
    return {"qweight": packed_words(codes.T.tolist(), 4, AWQ_ORDER), "qzeros": zeros, "scales": scales}, expected


def _nf4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """By the library's table: its own function is wrong on some CPUs for rows that blocks do not divide."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    parts = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    codes = torch.cat([packed >> 4, packed & 15], dim=1).flatten().long()
    expected = state.code[codes] * state.absmax.repeat_interleave(64)
    return {"weight": packed, **parts}, expected.view_as(weight)


def _int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, scale, _ = int8_vectorwise_quant(weight.half())
    stored = {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, int8_vectorwise_dequant(codes, scale)


NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
_CT = {"quant_method": "compressed-tensors"}
FORMS: dict[str, tuple[Form, dict[str, Any]]] = {
    "fp8-block": (_fp8_block, FP8_CONFIG),
    "fp8-tensor": (_fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8-channel": (_compressed("float-quantized", num_bits=8, type="float", strategy="channel"), _CT),
    "int8-channel": (_compressed("int-quantized", num_bits=8, type="int", strategy="channel"), _CT),
    "int4-group": (_compressed("pack-quantized", **INT4), {**_CT, "config_groups": {"group_0": {"weights": INT4}}}),
    "nvfp4": (_nvfp4, _CT),
    "mxfp4": (_compressed("mxfp4-pack-quantized", **{**NVFP4, "strategy": "group", "group_size": 32}), _CT),
    "modelopt-nvfp4": (_modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "bitsandbytes-nf4": (_nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes-int8": (_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


def save(form: str, name: str, folder: Path) -> tuple[torch.Tensor, float]:
    """Saves a tiny model in a format; transformers' `reference` logits with the numbers that are stored."""
    quantize, config = FORMS[form]
    numbers: Tensors = {}

    def stored(weight_name: str, weight: torch.Tensor) -> Tensors:
        parts, numbers[weight_name] = quantize(weight)
        module = weight_name.removesuffix("weight")
        return {module + part: tensor.contiguous() for part, tensor in parts.items()}

    model = save_quantized(name, folder, stored, config)
    before, _ = reference(model, TOKENS)
    plain = folder / "plain"
    model.save_pretrained(plain)  # names as they are published, whatever the model's own
    save_file({**load_file(plain / "model.safetensors"), **numbers}, plain / "model.safetensors", {"format": "pt"})
    quantized = type(model).from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    expected, tolerance = reference(quantized, TOKENS)
    assert 1e-4 < (expected - before).abs().mean() < 0.5, "quantised, but the same model"
    return expected, tolerance


@pytest.mark.parametrize("form", FORMS)
def test_offline(form: str, tmp_path: Path) -> None:
    expected, tolerance = save(form, "llama", tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = bridge.load_megatron_model(tmp_path / "megatron", wrap_with_ddp=False)
    assert (full_logits(model, TOKENS) - expected).abs().max() <= tolerance


LAYOUTS = {"tp2": ("llama", {"tp": 2}), "ep2": ("qwen3-moe", {"ep": 2, "etp": 1})}


@pytest.mark.parametrize("layout", [pytest.param("tp2"), pytest.param("ep2", marks=pytest.mark.proof)])
@pytest.mark.parametrize("form", FORMS)
def test_live(form: str, layout: str, tmp_path: Path) -> None:
    """Each rank reads its own slices."""
    name, sizes = LAYOUTS[layout]
    expected, tolerance = save(form, name, tmp_path / "hf")
    results = run_on(sizes, convert_and_run, tmp_path / "hf", TOKENS, sizes, tmp_path / "out")
    assert all((logits - expected).abs().max() <= tolerance for logits in results)


@pytest.mark.parametrize("sizes", [{"tp": 2, "etp": 1}, {"ep": 2, "etp": 1}], ids=str)
def test_mxfp4_of_gpt_oss(sizes: dict[str, int], tmp_path: Path) -> None:
    """Fused experts, of which a rank computes its own alone."""
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
    save_quantized(
        "gpt-oss",
        tmp_path / "hf",
        MXFP4Quantizer().quantize,
        config,
        lambda name: name.endswith(("up_proj", "down_proj")),
    )
    hf_model = transformers.GptOssForCausalLM.from_pretrained(
        tmp_path / "hf",
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    expected, tolerance = reference(hf_model.eval(), TOKENS)
    results = run_on(sizes, convert_and_run, tmp_path / "hf", TOKENS, sizes, tmp_path / "out")
    assert all((logits - expected).abs().max() <= tolerance for logits in results)
