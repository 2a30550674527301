"""Loads a Hugging Face model into Megatron-Core, exports it again, and compares every tensor bit for bit.

    uv run python examples/conversion/hf_megatron_roundtrip_multi_gpu.py --hf-model-id Qwen/Qwen3-0.6B
    uv run torchrun --nproc-per-node 2 examples/conversion/hf_megatron_roundtrip_multi_gpu.py \
        --hf-model-id Qwen/Qwen3-0.6B --tp 2 --output-dir ./qwen3-hf

The same as `megatron-bridge roundtrip`, which starts its own ranks.
"""

import argparse
import sys

from megatron.bridge import BridgeError, verification
from megatron.bridge.transport import process_groups


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hugging Face -> Megatron-Core -> Hugging Face, compared bit for bit.")
    parser.add_argument("--hf-model-id", required=True, help="folder or hub id")
    parser.add_argument("--output-dir", help="write the exported model here, and compare the files")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size")
    parser.add_argument("--ep", type=int, default=1, help="expert-parallel size")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow the model's own code to run")
    return parser.parse_args()


def main() -> bool:
    """Runs the round trip; whether every tensor came back."""
    args = parse_args()
    layout = verification.ParallelLayout(args.tp, args.pp, args.ep)
    result = verification.roundtrip(
        args.hf_model_id, layout, out=args.output_dir, trust_remote_code=args.trust_remote_code, show_progress=True
    )
    if process_groups.rank() == 0:
        print(f"{layout}: {result.num_tensors} tensors, {result.num_bytes} bytes, {len(result.mismatches)} mismatches")
        for line in result.mismatches:
            print(f"  {line}")
    process_groups.destroy()
    return result.passes


if __name__ == "__main__":
    try:
        passed = main()
    except BridgeError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if passed else 1)
