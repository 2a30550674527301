"""De-quantising FP8 blocks, compared with copying the output: a matrix in memory, and a whole folder on disk.

    PYTHONPATH=. uv run python benchmarks/dequantize.py

Both sides of a comparison run alternately in one process, with the same number of threads. The folder is a Llama of 1.1
billion parameters in FP8 with blocks of 128 x 128; `cp` and `sync` copy the bfloat16 folder that it becomes.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.convert import copy
from benchmarks.measure import Measure
from benchmarks.synthetic import llama_config, write_random_weights
from megatron.bridge import dequantize_checkpoint
from megatron.bridge.models.conversion.resources import Resources
from megatron.bridge.models.hf_pretrained.quantization.detection import detect
from megatron.bridge.models.hf_pretrained.quantization.quantize import quantize_blocks
from megatron.bridge.models.hf_pretrained.quantization.tensor import QuantizedView
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo

BLOCK = (128, 128)
CONFIG = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}


def in_memory(size: int, num_threads: int, rounds: int) -> None:
    """Prints how fast a square matrix is de-quantised, and how fast the result is copied."""
    torch.set_num_threads(1)
    codes, scale = quantize_blocks(torch.randn(size, size), BLOCK)
    stored = {"weight": codes, "weight_scale_inv": scale}
    infos = {name: TensorInfo(name, tuple(tensor.shape), tensor.dtype, "") for name, tensor in stored.items()}
    quantized = detect(infos, CONFIG).tensors["weight"]
    view = QuantizedView(quantized, {role: stored[name] for role, name in quantized.parts.items()}, torch.bfloat16)
    plain, out = view.whole(), torch.empty(size, size, dtype=torch.bfloat16)
    rows = size // num_threads
    parts = [(start, start + rows) for start in range(0, size, rows)]

    def dequantize(part: tuple[int, int]) -> None:
        quantized.dequantize(view._parts, (part, (0, size)), out[part[0] : part[1]])

    def copy_part(part: tuple[int, int]) -> None:
        out[part[0] : part[1]] = plain[part[0] : part[1]]

    with ThreadPoolExecutor(num_threads) as pool:

        def seconds(step: Callable[[tuple[int, int]], None]) -> float:
            start = time.perf_counter()
            list(pool.map(step, parts))
            return time.perf_counter() - start

        times = [(seconds(dequantize), seconds(copy_part)) for _ in range(rounds + 1)][1:]
    best = [min(column) for column in zip(*times, strict=True)]
    speeds = " and ".join(f"{2 * size * size / value / 1e9:.2f} GB/s" for value in best)
    print(f"in memory, {num_threads} thread(s): {speeds} of output; {best[1] / best[0]:.0%} of the copy's speed")


def quantized_llama(folder: Path, layers: int) -> None:
    """Writes a random Llama with its linear layers in FP8."""
    write_random_weights(llama_config(layers), folder)
    for path in sorted(folder.glob("*.safetensors")):
        stored = {}
        for name, tensor in load_file(path).items():
            if name.endswith("proj.weight"):
                stored[name], stored[f"{name}_scale_inv"] = quantize_blocks(tensor, BLOCK)
            else:
                stored[name] = tensor
        save_file(stored, path, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIG}))


def folders(base: Path, layers: int, rounds: int) -> None:
    """Prints how long the command takes for a folder, and how long `cp` takes for what it writes."""
    shutil.rmtree(base, ignore_errors=True)
    source, plain, out = base / "fp8", base / "plain", base / "out"
    quantized_llama(source, layers)
    dequantize_checkpoint(source, plain)
    os.sync()
    num_bytes = sum(path.stat().st_size for path in plain.glob("*.safetensors"))
    steps = {"cp": lambda: copy(plain, out), "dequantize": lambda: dequantize_checkpoint(source, out)}
    rounds_of: dict[str, list[Measure]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in steps if number % 2 else reversed(steps):
            with Measure() as measure:
                steps[name]()
                os.sync()
            shutil.rmtree(out)
            os.sync()
            if number:
                rounds_of[name].append(measure)
    best = {name: min(measure.seconds for measure in measures) for name, measures in rounds_of.items()}
    pairs = zip(rounds_of["cp"], rounds_of["dequantize"], strict=True)
    ratio = statistics.median(cp.seconds / step.seconds for cp, step in pairs)
    peak = max(measure.peak_bytes for measure in rounds_of["dequantize"])
    print(
        f"folder, {num_bytes / 1e9:.2f} GB of output: cp {best['cp']:.2f} s, de-quantising {best['dequantize']:.2f} s, "
        f"{best['cp'] / best['dequantize']:.0%} of cp's speed by best times, {ratio:.0%} by the median of the rounds; "
        f"at most +{peak / 1e6:.0f} MB (budget {Resources().memory / 2**20:.0f} MiB)"
    )
    shutil.rmtree(base)


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="rows and columns of the matrix")
    parser.add_argument("--layers", type=int, default=22, help="layers of the Llama")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/megatron-bridge-benchmark"))
    args = parser.parse_args()
    for num_threads in (1, 2):
        in_memory(args.size, num_threads, args.rounds)
    folders(args.folder, args.layers, args.rounds)


if __name__ == "__main__":
    main()
