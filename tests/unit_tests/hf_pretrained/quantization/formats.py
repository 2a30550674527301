"""One small checkpoint for each form of each format, with the numbers that its own library makes of it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron.bridge.models.hf_pretrained.quantization.detection import Detection, detect
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """A checkpoint, and what it stands for.

    Attributes:
        stored: its tensors.
        expected: the tensor that is meant, from the reference; of the dtype in which that has rounded once.
        name: of that tensor.
        config: `quantization_config`.
    """

    stored: Tensors
    expected: torch.Tensor
    name: str = "layer.weight"
    config: dict[str, Any] = field(default_factory=dict)


SAMPLES: dict[str, Callable[[], Sample]] = {}


def sample(name: str) -> Sample:
    """A sample, made anew: what its tensors hold may be changed."""
    made = _made(name)
    stored = {key: value.clone() for key, value in made.stored.items()}
    return Sample(stored, made.expected, made.name, deepcopy(made.config))


@cache
def _made(name: str) -> Sample:
    torch.manual_seed(0)
    return SAMPLES[name]()


def write(stored: Tensors, folder: Path) -> SafetensorsSource:
    """A folder with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    return SafetensorsSource(folder)


def found_in(stored: Tensors, config: dict[str, Any], folder: Path) -> Detection:
    """What headers alone say."""
    return detect(write(stored, folder).infos, config)


def opened(made: Sample, folder: Path, dtype: torch.dtype = torch.float32) -> DequantizedSource:
    """The checkpoint, as the weights that it stands for."""
    source = write(made.stored, folder)
    return DequantizedSource(source, detect(source.infos, made.config), dtype)


def _register(name: str, make: Callable[..., Sample], *args: Any) -> None:
    SAMPLES[name] = lambda: make(*args)


# Scaled 8-bit numbers, by transformers.


def _transformers_fp8(shape: tuple[int, ...], grid: tuple[int, ...], scale_dtype: torch.dtype, name: str) -> Sample:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = (torch.rand(grid) + 0.5) / 64
    if scale_dtype == torch.uint8:
        scale = torch.randint(118, 124, grid)
    scale = scale.to(scale_dtype)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale.reshape(grid or (1, 1)), torch.float32)
    blocks = [size // step for size, step in zip(shape, grid, strict=bool(grid))][-2:]
    config = {"quant_method": "fp8", "weight_block_size": blocks or None}
    return Sample({name: weight, f"{name}_scale_inv": scale}, expected, name, config)


_register("fp8-block", _transformers_fp8, (256, 384), (2, 3), torch.float32, "layer.weight")
_register("fp8-block-small", _transformers_fp8, (32, 48), (4, 3), torch.bfloat16, "layer.weight")
_register("fp8-tensor", _transformers_fp8, (24, 40), (), torch.bfloat16, "layer.weight")
_register("fp8-block-exponents", _transformers_fp8, (64, 64), (2, 2), torch.float8_e8m0fnu, "layer.weight")
_register("mxfp8", _transformers_fp8, (24, 96), (24, 3), torch.uint8, "layer.weight")
_register("fp8-experts", _transformers_fp8, (3, 32, 48), (3, 4, 3), torch.float32, "mlp.experts.gate_up_proj")


def _fp8_with_edges() -> Sample:
    """Blocks that are cut at both edges, which transformers pads: each number times the scale of its block."""
    weight, scale = torch.randn(200, 300).to(torch.float8_e4m3fn), torch.rand(2, 3)
    whole = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return Sample({"layer.weight": weight, "layer.weight_scale_inv": scale}, weight.float() * whole, config=config)


def _fp8_transposed() -> Sample:
    """Stored as `[in, out]`, with blocks that are not square."""
    weight, scale = torch.randn(100, 70).to(torch.float8_e5m2), torch.rand(4, 5)
    whole = scale.repeat_interleave(32, 0)[:100].repeat_interleave(16, 1)[:, :70]
    config = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    return Sample({"layer.weight": weight, "layer.weight_scale_inv": scale}, weight.float() * whole, config=config)


def _fp8_of_other_names() -> Sample:
    """As Mistral names scales, which transformers renames."""
    made = _transformers_fp8((24, 40), (), torch.float32, "layer.weight")
    return Sample(
        {"layer.weight": made.stored["layer.weight"], "layer.qscale_weight": made.stored["layer.weight_scale_inv"]},
        made.expected,
    )


def _fp8_of_each_expert() -> Sample:
    weight, scale = torch.randn(3, 16, 24).to(torch.float8_e4m3fn), torch.rand(3)
    stored = {"experts.down_proj": weight, "experts.down_proj_weight_scale": scale}
    return Sample(stored, weight.float() * scale[:, None, None], "experts.down_proj")


_register("fp8-block-edges", _fp8_with_edges)
_register("fp8-block-transposed", _fp8_transposed)
_register("fp8-qscale", _fp8_of_other_names)
_register("fp8-experts-a-scale-each", _fp8_of_each_expert)


# compressed-tensors, by its own compressors.


def scheme(**weights: Any) -> Any:
    """compressed-tensors' description of quantised weights."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def compressed(form: str, weight: torch.Tensor, **weights: Any) -> tuple[Tensors, torch.Tensor, dict[str, Any]]:
    """What compressed-tensors stores for a weight, what it makes of that again, and how its config describes it."""
    from compressed_tensors.compressors import BaseCompressor

    described, compressor = scheme(**weights), BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress({"weight": weight, **_parameters(weight, form, described.weights)}, described)
    expected = compressor.decompress(dict(stored), described)["weight"].detach()
    return {key: value.detach() for key, value in stored.items()}, expected, described.weights.model_dump(mode="json")


def _compressed(form: str, dtype: torch.dtype, shape: tuple[int, int], **weights: Any) -> Sample:
    stored, expected, described = compressed(form, torch.randn(shape).to(dtype), **weights)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": described}},
    }
    return Sample({f"layer.{key}": value for key, value in stored.items()}, expected, config=config)


def _parameters(weight: torch.Tensor, form: str, args: Any) -> Tensors:
    """Scales and zero points, as an observer of the smallest and largest values gives them."""
    strategy = getattr(args.strategy, "value", args.strategy)
    if strategy == "block":
        rows, columns = args.block_structure
        cells = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).transpose(1, 2).flatten(-2)
    elif strategy in ("group", "tensor_group"):
        cells = weight.unflatten(1, (-1, args.group_size))
    else:
        cells = weight.reshape(1, 1, -1) if strategy == "tensor" else weight[:, None]
    low, high = cells.float().amin(-1), cells.float().amax(-1)
    if strategy == "tensor":
        low, high = low.flatten(), high.flatten()
    if args.type == "float":
        scale = torch.maximum(-low, high) / (6 if args.num_bits == 4 else 448)
        if form.startswith("mx"):
            return {"weight_scale": scale.log2().ceil().exp2().to(weight.dtype)}
        if form.startswith("nvfp4"):
            whole = 448 * 6 / weight.float().abs().max().reshape(1)
            return {
                "weight_scale": (scale * whole).to(torch.float8_e4m3fn).to(weight.dtype),
                "weight_global_scale": whole,
            }
        return {"weight_scale": scale.to(weight.dtype)}
    steps, half = (1 << args.num_bits) - 1, 1 << (args.num_bits - 1)
    if args.symmetric:
        return {"weight_scale": (torch.maximum(-low, high) / (half - 0.5)).to(weight.dtype)}
    scale = ((high - low) / steps).to(weight.dtype)
    zero = (-half - low / scale.float()).round().clamp(-half, half - 1).to(torch.int8)
    return {"weight_scale": scale, "weight_zero_point": zero}


for _bits in (4, 8):
    for _symmetric in (True, False):
        _kind = f"pack-quantized-{_bits}-{'symmetric' if _symmetric else 'asymmetric'}"
        _common = {"num_bits": _bits, "type": "int", "symmetric": _symmetric}
        for _strategy, _more, _shape in (
            ("group", {"group_size": 32}, (20, 96)),
            ("channel", {}, (20, 52)),
            ("tensor", {}, (9, 37)),
        ):
            SAMPLES[f"{_kind}-{_strategy}"] = lambda shape=_shape, more=_common | {"strategy": _strategy} | _more: (
                _compressed("pack-quantized", torch.float32, shape, **more)
            )
for _name, _form, _dtype, _weights in (
    ("int-quantized", "int-quantized", torch.float32, {"num_bits": 8, "type": "int", "strategy": "channel"}),
    ("int-quantized-tensor", "int-quantized", torch.bfloat16, {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    ("int-quantized-group", "int-quantized", torch.float32,
     {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32}),
    ("int-quantized-asymmetric", "int-quantized", torch.float32,
     {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
    ("int-quantized-asymmetric-group", "naive-quantized", torch.bfloat16,
     {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}),
    ("float-quantized", "float-quantized", torch.float32, {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("float-quantized-tensor", "float-quantized", torch.bfloat16,
     {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ("float-quantized-group", "naive-quantized", torch.float32,
     {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
    ("float-quantized-block", "naive-quantized", torch.float32,
     {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}),
    ("mxfp8-quantized", "mxfp8-quantized", torch.bfloat16,
     {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
    ("nvfp4-pack-quantized", "nvfp4-pack-quantized", torch.bfloat16,
     {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    ("mxfp4-pack-quantized", "mxfp4-pack-quantized", torch.bfloat16,
     {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
):  # fmt: skip
    _register(
        _name, lambda form, dtype, weights: _compressed(form, dtype, (48, 96), **weights), _form, _dtype, _weights
    )


def _pack_quantized_with_order() -> Sample:
    """`weight_g_idx`: the columns as they are, each with the scale of its group (compressed-tensors below 0.13)."""
    made = _compressed(
        "pack-quantized", torch.float32, (12, 96), num_bits=4, type="int", strategy="group", group_size=32
    )
    order = torch.randperm(96)
    codes = made.expected / made.stored["layer.weight_scale"].repeat_interleave(32, 1)
    expected = codes.round() * made.stored["layer.weight_scale"][:, order // 32]
    return Sample(made.stored | {"layer.weight_g_idx": (order // 32).int()}, expected, config=made.config)


def _pack_quantized_stack() -> Sample:
    """Experts together: a stack of what one has."""
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    each = [_compressed("pack-quantized", torch.float32, (20, 64), **weights) for _ in range(5)]
    stored = {
        f"experts.down_proj_{key[len('layer.weight_') :]}": torch.stack([one.stored[key] for one in each])
        for key in each[0].stored
    }
    stored["experts.down_proj_shape"] = torch.tensor([5, 20, 64])
    return Sample(stored, torch.stack([one.expected for one in each]), "experts.down_proj", each[0].config)


_register("pack-quantized-order", _pack_quantized_with_order)
_register("pack-quantized-stack", _pack_quantized_stack)


# 4-bit floats of others.


def _gpt_oss() -> Sample:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 124, (3, 40, 2), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    stored = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    return Sample(stored, expected.contiguous(), "experts.gate_up_proj")


def _float4(packed: torch.Tensor) -> torch.Tensor:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    rows = packed.reshape(-1, packed.shape[-1])
    numbers = unpack_fp4_from_uint8(rows, len(rows), 2 * packed.shape[-1], torch.float32)
    return numbers.unflatten(0, packed.shape[:-1])


def _mxfp4_in_bytes(dtype: torch.dtype, scale_dtype: torch.dtype, scale_name: str) -> Sample:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    packed = torch.randint(0, 256, (24, 48), dtype=torch.uint8)
    scale = torch.randint(118, 124, (24, 3), dtype=torch.uint8).view(scale_dtype)
    expected = Fp8Dequantize(None)._dequantize_one(packed.view(torch.int8), scale, torch.float32)
    return Sample({"layer.weight": packed.view(dtype), f"layer.{scale_name}": scale}, expected)


def _modelopt(shape: tuple[int, ...], axis: int, name: str, prefix: str, num_overall: int | None) -> Sample:
    packed = torch.randint(0, 256, shape, dtype=torch.uint8)
    turned = packed if axis == -1 else packed.mT
    scale = (torch.rand(*turned.shape[:-1], turned.shape[-1] // 8) + 0.5).to(torch.float8_e4m3fn)
    overall = torch.rand(()) if num_overall is None else torch.rand(num_overall)
    each = scale.float() * (overall if num_overall is None else overall[:, None, None])
    expected = _float4(turned) * each.repeat_interleave(16, -1)
    scale, expected = (scale, expected) if axis == -1 else (scale.mT, expected.mT)
    stored = {name: packed, f"{prefix}_scale": scale, f"{prefix}_scale_2": overall}
    return Sample(stored, expected.contiguous(), name)


_register("gpt-oss-mxfp4", _gpt_oss)
_register("mxfp4-in-int8", _mxfp4_in_bytes, torch.int8, torch.float8_e8m0fnu, "weight_scale_inv")
_register("mxfp4-deepseek", _mxfp4_in_bytes, torch.int8, torch.float8_e8m0fnu, "scale")
_register("mxfp4-in-uint8", _mxfp4_in_bytes, torch.uint8, torch.uint8, "weight_scale")
_register("modelopt-nvfp4", _modelopt, (24, 48), -1, "layer.weight", "layer.weight", None)
_experts = ("experts.down_proj", "experts.down_proj_weight")
_register("modelopt-nvfp4-experts", _modelopt, (3, 20, 32), -1, *_experts, 3)
_register("modelopt-nvfp4-experts-transposed", _modelopt, (3, 32, 20), -2, *_experts, None)


# bitsandbytes, by its own functions.


def _bitsandbytes_4bit(
    kind: str, shape: tuple[int, ...], block: int, is_nested: bool, storage: torch.dtype, dtype: torch.dtype
) -> Sample:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(shape).to(dtype), None, None, block, is_nested, kind, quant_storage=storage
    )
    stored = {f"layer.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    return Sample({"layer.weight": packed, **stored}, dequantize_4bit(packed, state))


def _bitsandbytes_int8() -> Sample:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, scale, _ = int8_vectorwise_quant(torch.randn(24, 40).half())
    stored = {"layer.weight": codes, "layer.SCB": scale, "layer.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Sample(stored, int8_vectorwise_dequant(codes, scale))


_float, _byte = torch.float32, torch.uint8
_register("bitsandbytes-nf4", _bitsandbytes_4bit, "nf4", (48, 128), 64, False, _byte, _float)
_register("bitsandbytes-nf4-nested", _bitsandbytes_4bit, "nf4", (160, 256), 64, True, _byte, _float)
_register("bitsandbytes-nf4-bfloat16", _bitsandbytes_4bit, "nf4", (48, 128), 64, True, _byte, torch.bfloat16)
_register("bitsandbytes-nf4-in-bfloat16", _bitsandbytes_4bit, "nf4", (48, 128), 128, False, torch.bfloat16, _float)
_register("bitsandbytes-nf4-across-rows", _bitsandbytes_4bit, "nf4", (30, 50), 64, False, _byte, _float)
_register("bitsandbytes-nf4-odd", _bitsandbytes_4bit, "nf4", (7, 33), 64, False, _byte, _float)
_register("bitsandbytes-nf4-experts", _bitsandbytes_4bit, "nf4", (3, 10, 64), 32, False, _byte, _float)
_register("bitsandbytes-fp4", _bitsandbytes_4bit, "fp4", (48, 128), 64, False, _byte, _float)
_register("bitsandbytes-fp4-nested", _bitsandbytes_4bit, "fp4", (48, 128), 64, True, _byte, _float)
_register("bitsandbytes-int8", _bitsandbytes_int8)
