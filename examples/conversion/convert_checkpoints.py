"""Converts checkpoints between Hugging Face and Megatron, streamed from file to file.

    uv run python examples/conversion/convert_checkpoints.py import --hf-model Qwen/Qwen3-0.6B --megatron-path ./qwen3
    uv run python examples/conversion/convert_checkpoints.py export --hf-model Qwen/Qwen3-0.6B --megatron-path ./qwen3 \
        --hf-path ./qwen3-hf

The same as `megatron-bridge import` and `megatron-bridge export`.
"""

import argparse
import sys

from megatron.bridge import AutoBridge, BridgeError
from megatron.bridge.transport import process_groups

DTYPES = ("float32", "bfloat16", "float16")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert checkpoints between Hugging Face and Megatron.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("import", "Hugging Face -> Megatron"), ("export", "Megatron -> Hugging Face")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--hf-model", required=True, help="folder or hub id; for export, where the config is from")
        command.add_argument("--megatron-path", required=True, help="the Megatron checkpoint")
        command.add_argument("--torch-dtype", choices=DTYPES, help="dtype of the written weights; default: as stored")
        command.add_argument("--trust-remote-code", action="store_true", help="allow the model's own code to run")
        if name == "export":
            command.add_argument("--hf-path", required=True, help="the folder to write")
    return parser.parse_args()


def main() -> None:
    """Runs one conversion."""
    import torch

    args = parse_args()
    dtype = getattr(torch, args.torch_dtype) if args.torch_dtype else None
    bridge = AutoBridge.from_hf_pretrained(args.hf_model, trust_remote_code=args.trust_remote_code)
    if args.command == "import":
        bridge.write_megatron_checkpoint(args.megatron_path, dtype, show_progress=True)
        written = args.megatron_path
    else:
        bridge.export_ckpt(args.megatron_path, args.hf_path, show_progress=True, torch_dtype=dtype)
        written = args.hf_path
    if process_groups.rank() == 0:
        print(f"wrote {written}")
    process_groups.destroy()


if __name__ == "__main__":
    try:
        main()
    except BridgeError as error:
        sys.exit(f"error: {error}")
