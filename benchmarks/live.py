"""Live models: bytes read per rank, exports compared with a bare copy of the same bytes, and second refits with first.

    PYTHONPATH=. uv run python benchmarks/live.py                                            # one rank
    PYTHONPATH=. uv run torchrun --nproc-per-node 2 benchmarks/live.py --tp 2                # also --pp 2
    PYTHONPATH=. uv run torchrun --nproc-per-node 2 benchmarks/live.py --model qwen3-moe --ep 2

An export streams every whole tensor to every rank, so each rank receives the bytes of the whole model; the bare copy
moves as many bytes in memory. The first refit includes making the tasks, the second only moves weights.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch

from benchmarks.synthetic import llama_config, qwen3_moe_config, write_random_weights
from megatron.bridge import AutoBridge
from megatron.bridge.transport import process_groups


def main() -> None:
    """Runs the benchmark; rank 0 prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama", "qwen3-moe"], default="llama")
    parser.add_argument("--layers", type=int, default=22, help="layers of the Llama")
    for size in ("tp", "pp", "ep"):
        parser.add_argument(f"--{size}", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/megatron-bridge-benchmark-live"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    process_groups.initialize(tp=args.tp, pp=args.pp, ep=args.ep, etp=1 if args.ep > 1 else None)
    is_first = process_groups.rank() == 0
    if is_first:
        shutil.rmtree(args.folder, ignore_errors=True)
        write_random_weights(llama_config(args.layers) if args.model == "llama" else qwen3_moe_config(), args.folder)
    process_groups.barrier()

    bridge = AutoBridge.from_hf_pretrained(args.folder)
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.tensor_model_parallel_size, provider.pipeline_model_parallel_size = args.tp, args.pp
    provider.expert_model_parallel_size = args.ep
    provider.expert_tensor_parallel_size = 1 if args.ep > 1 else None
    provider.perform_initialization = False
    model = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
    start = time.perf_counter()
    bridge.load_hf_weights(model)
    load_seconds = time.perf_counter() - start
    report = bridge.load_report
    assert report is not None
    reports = process_groups.all_gather_object((report.bytes_read, report.bytes_written))

    seconds, total = refit(bridge, model)
    copy_seconds = bare_copy(total)
    if is_first:
        layout = f"tp={args.tp} pp={args.pp} ep={args.ep}"
        print(f"{args.model}, {layout}: {total / 1e9:.2f} GB, loaded in {load_seconds:.2f} s")
        for rank, (num_read, own) in enumerate(reports):
            print(
                f"  rank {rank}: read {num_read / 1e6:.0f} MB for {own / 1e6:.0f} MB of weights ({num_read / own:.3f}x)"
            )
        first, second, third = seconds
        print(f"  export: first {first:.2f} s, second {second:.2f} s, third {third:.2f} s; copy {copy_seconds:.2f} s")
        print(f"  second / first {second / first:.2f}, second / copy {second / copy_seconds:.2f}")
        shutil.rmtree(args.folder)
    process_groups.barrier()
    process_groups.destroy()


def refit(bridge: AutoBridge, model: list[torch.nn.Module]) -> tuple[list[float], int]:
    """The seconds of each of three exports, of which the first makes the tasks, and the bytes of one."""
    seconds = []
    tasks, total = None, 0
    for _ in range(3):
        process_groups.barrier()
        start = time.perf_counter()
        tasks = bridge.get_conversion_tasks(model) if tasks is None else tasks
        total = sum(weight.nbytes for _, weight in bridge.export_hf_weights(model, conversion_tasks=tasks))
        seconds.append(time.perf_counter() - start)
    return seconds, total


def bare_copy(num_bytes: int) -> float:
    """The seconds for copying as many bytes in memory, in eight pieces."""
    source, target = (torch.zeros(num_bytes // 8, dtype=torch.uint8) for _ in range(2))
    process_groups.barrier()
    start = time.perf_counter()
    for _ in range(8):
        target.copy_(source)
    return time.perf_counter() - start


if __name__ == "__main__":
    from megatron.bridge import runtime

    runtime.enter()
    main()
