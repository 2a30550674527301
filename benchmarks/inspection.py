"""Time and memory of `megatron-bridge inspect` for models too large for the disk, from synthetic headers.

    PYTHONPATH=. uv run python benchmarks/inspection.py deepseek-v3      # 685 B parameters with MTP, in FP8
    PYTHONPATH=. uv run python benchmarks/inspection.py kimi-k2          # 1 T parameters, in FP8

The names, shapes and dtypes are those of the published checkpoints, scales included. The whole process is timed, from
the start of Python to its end.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import transformers

from benchmarks.plan import MODELS
from benchmarks.synthetic import as_fp8, published_shapes, write_stored_headers

QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}

# The command, which prints its peak memory at its end: what a parent process is told counts the parent's memory too.
COMMAND = """
import re, sys
from megatron.bridge.cli import main
code = main()
sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def prediction_layer(shapes: list[tuple[str, tuple[int, ...]]], number: int) -> list[tuple[str, tuple[int, ...]]]:
    """The prediction layer that follows the last layer, `number - 1`: the same tensors, and some of its own."""
    known = dict(shapes)
    vocabulary = known["model.embed_tokens.weight"]
    hidden = vocabulary[1]
    prefix = f"model.layers.{number}."
    layer = [
        (name.replace(f".{number - 1}.", f".{number}.", 1), shape)
        for name, shape in shapes
        if f"layers.{number - 1}." in name
    ]
    own = {
        **dict.fromkeys(("enorm.weight", "hnorm.weight", "shared_head.norm.weight"), (hidden,)),
        **dict.fromkeys(("embed_tokens.weight", "shared_head.head.weight"), vocabulary),
        "eh_proj.weight": (hidden, 2 * hidden),
    }
    return [*layer, *((prefix + name, shape) for name, shape in own.items())]


def write_model(name: str, folder: Path) -> int:
    """Writes config, index and headers; returns the number of stored tensors."""
    num_predicted = 1 if name == "deepseek-v3" else 0
    config = transformers.DeepseekV3Config(**MODELS[name], architectures=["DeepseekV3ForCausalLM"])
    shapes = published_shapes(config)
    if num_predicted:
        shapes += prediction_layer(shapes, config.num_hidden_layers)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    path = folder / "config.json"
    model_type = {"kimi-k2": "kimi_k2"}.get(name, "deepseek_v3")
    changes = {"quantization_config": QUANTIZATION, "num_nextn_predict_layers": num_predicted, "model_type": model_type}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    stored = as_fp8(shapes)
    write_stored_headers(stored, folder, tensors_per_file=-(-len(stored) // 163))
    return len(stored)


def run_command(folder: Path) -> tuple[float, int, str]:
    """The seconds that the command takes, its peak resident memory in bytes, and its output."""
    start = time.perf_counter()
    command = [sys.executable, "-c", COMMAND, "inspect", str(folder), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return seconds, int(result.stderr) * 1024, result.stdout


def main() -> None:
    """Writes the headers, then runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/megatron-bridge-benchmark-inspection"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    num_tensors = write_model(args.model, args.folder)
    rounds = [run_command(args.folder) for _ in range(args.rounds)]
    seconds, memory, report = [run[0] for run in rounds], max(run[1] for run in rounds), json.loads(rounds[-1][2])
    parameters = report["parameters"]
    print(f"{args.model}: {num_tensors} stored tensors in {parameters['num_files']} files")
    print(f"  {parameters['total'] / 1e9:.2f} B parameters, {parameters['active'] / 1e9:.2f} B active")
    next_step = report["next_step"].replace(str(args.folder), "MODEL")
    print(f"  tensors without a rule: {sum(report['support']['unmatched'].values())}; next step: {next_step}")
    median = statistics.median(seconds)
    print(f"  {min(seconds):.2f} s at best, {median:.2f} s in the median of {args.rounds}; {memory / 1e6:.0f} MB")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
