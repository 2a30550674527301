"""Writes Ministral 3's FP8 checkpoint as a plain bfloat16 folder, as a stream.

    uv run python examples/models/mistral/ministral3/dequant_fp8_for_bridge.py \
        mistralai/Ministral-3-3B-Instruct-2512 ./ministral3-bf16

Conversion does not need this, because it reads quantised checkpoints as numbers anyway, but other tools may. The
published scales of activations are left out. The same as `megatron-bridge dequantize`.
"""

import argparse
import sys

from megatron.bridge import BridgeError, dequantize_checkpoint


def main() -> None:
    """Runs the conversion."""
    parser = argparse.ArgumentParser(description="Ministral 3 in FP8 -> bfloat16.")
    parser.add_argument("source", help="folder or hub id")
    parser.add_argument("out", help="the folder to write")
    args = parser.parse_args()
    weights = dequantize_checkpoint(args.source, args.out, show_progress=True)
    print(f"wrote {args.out}: {len(weights.found.tensors)} tensors were quantised")


if __name__ == "__main__":
    try:
        main()
    except BridgeError as error:
        sys.exit(f"error: {error}")
