"""Offline import and export compared with `cp -r` and `sync` of the same bytes.

    PYTHONPATH=. uv run python benchmarks/convert.py --model llama --layers 22        # 2.2 GB
    PYTHONPATH=. uv run python benchmarks/convert.py --model llama --layers 90        # 8.2 GB
    PYTHONPATH=. uv run python benchmarks/convert.py --model qwen3-moe                # 64 experts: many small tensors

Each round copies, imports and exports in random order, so that a slow moment of the machine may hit any of them. Ratios
are taken within a round. The first round does not count, because the disk is still busy writing the model; nor do
starting Python and importing megatron-core, whose time is printed separately.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import time
from pathlib import Path

START = time.perf_counter()

from benchmarks.measure import Measure  # noqa: E402
from benchmarks.synthetic import llama_config, qwen3_moe_config, write_random_weights  # noqa: E402
from megatron.bridge import AutoBridge  # noqa: E402
from megatron.bridge.models.conversion.resources import Resources  # noqa: E402


def drop_caches(folder: Path) -> None:
    """Takes a folder's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def copy(source: Path, target: Path) -> None:
    """`cp -r` of a folder."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama", "qwen3-moe"], default="llama")
    parser.add_argument("--layers", type=int, default=22, help="layers of the Llama")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="take the sources out of the page cache before each step")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/megatron-bridge-benchmark"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    hf, megatron, out, copied = (args.folder / name for name in ("hf", "megatron", "out", "copy"))
    write_random_weights(llama_config(args.layers) if args.model == "llama" else qwen3_moe_config(), hf)
    os.sync()
    num_bytes = sum(path.stat().st_size for path in hf.glob("*.safetensors"))
    bridge = AutoBridge.from_hf_pretrained(hf)
    bridge.to_megatron_provider(load_weights=False)  # imports megatron-core
    from megatron.bridge.models.conversion import meta_model

    meta_model.ensure_unsharded()
    budget = Resources().memory
    print(f"{args.model}: {num_bytes / 1e9:.2f} GB, budget {budget / 2**20:.0f} MiB, {'cold' if args.cold else 'warm'}")
    print(f"start-up (imports, and writing the model): {time.perf_counter() - START:.1f} s")
    bridge.import_ckpt(hf, megatron)
    steps = {
        "cp": (copied, lambda: copy(hf, copied)),
        "import": (args.folder / "imported", lambda: AutoBridge.import_ckpt(hf, args.folder / "imported")),
        "export": (out, lambda: bridge.export_ckpt(megatron, out)),
    }
    order = random.Random(0)
    rounds = []
    for _ in range(args.rounds + 1):
        measures = {}
        for name in order.sample(list(steps), len(steps)):
            target, run = steps[name]
            if args.cold:
                drop_caches(args.folder)
            with Measure() as measures[name]:
                run()
                os.sync()
            shutil.rmtree(target)
            os.sync()
        rounds.append(measures)
        print(" | ".join(f"{name} {describe(measures, name)}" for name in steps), flush=True)
    for name in ("import", "export"):
        ratios = [ratio(measures, name) for measures in rounds[1:]]
        peak = max(measures[name].peak_bytes for measures in rounds)
        best, best_cp = (min(measures[step].seconds for measures in rounds[1:]) for step in (name, "cp"))
        print(
            f"{name}: {best / best_cp:.2f}x of cp by best times, {statistics.median(ratios):.2f}x by the median of the "
            f"rounds' ratios; at most +{peak / 1e6:.0f} MB"
        )
    shutil.rmtree(args.folder)


def ratio(measures: dict[str, Measure], name: str) -> float:
    """The time of a step divided by that of the copy in the same round."""
    return measures[name].seconds / measures["cp"].seconds


def describe(measures: dict[str, Measure], name: str) -> str:
    """The time, ratio and memory of a step."""
    step = measures[name]
    return f"{step.seconds:.2f} s, {ratio(measures, name):.2f}x, +{step.peak_bytes / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
