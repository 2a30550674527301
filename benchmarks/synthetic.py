"""Models of any size: files of random weights, or headers alone for models that are too large for the disk."""

import json
import struct
from pathlib import Path

import torch
import transformers

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}


def llama_config(num_layers: int) -> transformers.PretrainedConfig:
    """The shape of TinyLlama-1.1B with `num_layers` (22 for 2.2 GB)."""
    return transformers.LlamaConfig(
        **LLAMA, num_hidden_layers=num_layers, dtype="bfloat16", architectures=["LlamaForCausalLM"]
    )


def qwen3_moe_config() -> transformers.PretrainedConfig:
    """About 1 B parameters in 8 layers of 64 experts: many small tensors."""
    return transformers.Qwen3MoeConfig(
        vocab_size=32000,
        hidden_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=576,
        dtype="bfloat16",
        architectures=["Qwen3MoeForCausalLM"],
    )


def weight_shapes(config: transformers.PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's weights in transformers, from the model on the meta device."""
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_random_weights(config: transformers.PretrainedConfig, folder: Path, shard_bytes: int = 1 << 30) -> None:
    """Writes a model with random bfloat16 weights in files of about `shard_bytes`, one in memory at a time."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in published_shapes(config):
        num_bytes = 2 * torch.Size(shape).numel()
        if size and size + num_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append((name, shape))
        size += num_bytes
    weight_map = {}
    for index, group in enumerate(groups, 1):
        filename = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: _random(shape, generator) for name, shape in group}
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, filename)
    index_file = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random bits with exponents of ordinary finite numbers, which are made much faster than normal numbers."""
    bits = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16, generator=generator)
    return (bits & ~0x4000 | 0x3000).view(torch.bfloat16)


def published_shapes(config: transformers.PretrainedConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes as published: with experts one by one, not stacked as in transformers' models."""
    shapes = []
    for name, shape in weight_shapes(config).items():
        if name.endswith("mlp.experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            num_experts, two_ffn, hidden = shape
            for expert in range(num_experts):
                for part in ("gate_proj", "up_proj"):
                    shapes.append((f"{prefix}{expert}.{part}.weight", (two_ffn // 2, hidden)))
        elif name.endswith("mlp.experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            for expert in range(shape[0]):
                shapes.append((f"{prefix}{expert}.down_proj.weight", shape[1:]))
        else:
            shapes.append((name, shape))
    return shapes


FP8_BLOCK = 128


def as_fp8(shapes: list[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...], str]]:
    """The names, shapes and dtypes of the same weights with FP8 projections, as DeepSeek-V3 is published."""
    stored: list[tuple[str, tuple[int, ...], str]] = []
    for name, shape in shapes:
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and not name.endswith("eh_proj.weight"):
            stored.append((name, shape, "F8_E4M3"))
            stored.append((f"{name}_scale_inv", tuple(-(-size // FP8_BLOCK) for size in shape), "F32"))
        else:
            stored.append((name, shape, "F32" if name.endswith("bias") else "BF16"))
    return stored


def write_headers(config: transformers.PretrainedConfig, folder: Path, tensors_per_file: int = 1000) -> None:
    """Writes a model of which only the headers are real: sparse files of the right size, which occupy no disk."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    write_stored_headers([(name, shape, "BF16") for name, shape in published_shapes(config)], folder, tensors_per_file)


def write_stored_headers(
    stored: list[tuple[str, tuple[int, ...], str]], folder: Path, tensors_per_file: int = 1000
) -> None:
    """Writes an index and sparse weight files of these names, shapes and dtypes."""
    nbytes = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
    files = [stored[start : start + tensors_per_file] for start in range(0, len(stored), tensors_per_file)]
    weight_map = {}
    for index, group in enumerate(files, 1):
        filename = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        header: dict[str, dict[str, object]] = {}
        end = 0
        for name, shape, dtype in group:
            begin, end = end, end + nbytes[dtype] * torch.Size(shape).numel()
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
            weight_map[name] = filename
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / filename).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
