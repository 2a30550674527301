"""Offline import and export against `cp -r` and `sync` of the same bytes.

    uv run python benchmarks/convert.py --model llama --layers 22        # 2.2 GB
    uv run python benchmarks/convert.py --model llama --layers 90        # 8.2 GB
    uv run python benchmarks/convert.py --model qwen3-moe                # 64 experts: many small tensors

Each round copies, imports and exports in turn, so that a slow moment of the machine hits all of them; ratios are of
one round. The process is started and megatron-core imported before the first round; that time is printed apart.
"""

import argparse
import os
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


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp -r` and `sync`."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    os.sync()
    return time.perf_counter() - start


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama", "qwen3-moe"], default="llama")
    parser.add_argument("--layers", type=int, default=22, help="of the Llama")
    parser.add_argument("--rounds", type=int, default=3)
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
    from megatron.bridge.models.conversion import offline

    offline.ensure_unsharded()
    budget = Resources().memory
    print(f"{args.model}: {num_bytes / 1e9:.2f} GB, budget {budget / 2**20:.0f} MiB, {'cold' if args.cold else 'warm'}")
    print(f"start-up (imports, and making the model's files): {time.perf_counter() - START:.1f} s")
    rows = []
    for _ in range(args.rounds):
        for folder in (megatron, out, copied):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        if args.cold:
            drop_caches(hf)
        cp_seconds = copy(hf, copied)
        if args.cold:
            drop_caches(hf)
        with Measure() as importing:
            AutoBridge.import_ckpt(hf, megatron)
            os.sync()
        if args.cold:
            drop_caches(megatron)
        with Measure() as exporting:
            bridge.export_ckpt(megatron, out)
            os.sync()
        rows.append((cp_seconds, importing, exporting))
        print(
            f"cp {cp_seconds:.2f} s | import {importing.seconds:.2f} s, {importing.seconds / cp_seconds:.2f}x, "
            f"+{importing.peak_bytes / 1e6:.0f} MB | export {exporting.seconds:.2f} s, "
            f"{exporting.seconds / cp_seconds:.2f}x, +{exporting.peak_bytes / 1e6:.0f} MB"
        )
    import_ratio = statistics.median(importing.seconds / cp for cp, importing, _ in rows)
    export_ratio = statistics.median(exporting.seconds / cp for cp, _, exporting in rows)
    print(f"median ratio to cp: import {import_ratio:.2f}, export {export_ratio:.2f}")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
