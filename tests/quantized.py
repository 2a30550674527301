"""Quantised folders of tiny models, and raw bytes to compare."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import TINY_MODELS

Tensors = dict[str, torch.Tensor]
FP8_BLOCK = 8


def fp8_blocks(name: str, weight: torch.Tensor) -> Tensors:
    """A weight in FP8, as DeepSeek-V3 stores it, with small blocks; those at the edges may be cut."""
    rows, columns = (-(-size // FP8_BLOCK) for size in weight.shape)
    padded = torch.zeros(rows * FP8_BLOCK, columns * FP8_BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows, FP8_BLOCK, columns, FP8_BLOCK)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scale).view_as(padded)[: weight.shape[0], : weight.shape[1]]
    return {name: codes.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale[:, 0, :, 0].contiguous()}


FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}


def is_linear(name: str) -> bool:
    """Whether an HF tensor is the weight of a linear layer that is usually quantised."""
    return name.endswith("proj.weight")


def save_quantized(
    name: str,
    folder: Path,
    quantize: Callable[[str, torch.Tensor], Tensors] = fp8_blocks,
    config: dict[str, Any] = FP8_CONFIG,
    quantizes: Callable[[str], bool] = is_linear,
) -> Any:
    """Saves a tiny model with quantised weights; returns the model as it was before."""
    model = TINY_MODELS[name].save(folder)
    stored: Tensors = {}
    for tensor_name, tensor in load_file(folder / "model.safetensors").items():
        stored |= quantize(tensor_name, tensor) if quantizes(tensor_name) else {tensor_name: tensor}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}, indent=2))
    return model


def stored_bytes(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Every stored tensor of a folder: dtype, shape and bytes."""
    return {name: in_bytes(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}


def in_bytes(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and bytes of a tensor."""
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
