"""Generates text with a Hugging Face model in Megatron-Core, on one process or under torchrun.

    uv run python examples/conversion/hf_to_megatron_generate_text.py --hf_model_path Qwen/Qwen3-0.6B --prompt "Hello"
    uv run torchrun --nproc-per-node 2 examples/conversion/hf_to_megatron_generate_text.py \
        --hf_model_path Qwen/Qwen3-0.6B --prompt "Hello" --tp 2

With `--megatron_model_path` the weights come from a Megatron checkpoint, and the tokenizer from the Hugging Face model.
The same as `megatron-bridge generate`.
"""

import argparse
import sys

from megatron.bridge import BridgeError
from megatron.bridge.inference import SamplingParams, generate_text
from megatron.bridge.inference.open_model import open_model
from megatron.bridge.transport import process_groups
from megatron.bridge.transport.parallel_sizes import ParallelLayout


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate text with a Hugging Face model in Megatron-Core.")
    parser.add_argument("--hf_model_path", required=True, help="folder or hub id")
    parser.add_argument("--prompt", required=True, help="the text to answer or to continue")
    parser.add_argument("--megatron_model_path", help="take the weights from this Megatron checkpoint")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="stop after this many tokens")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model's own code to run")
    return parser.parse_args()


def main() -> None:
    """Builds the model and prints its text as it comes."""
    args = parse_args()
    model, tokenizer, eos_token_ids = open_model(
        args.megatron_model_path or args.hf_model_path,
        ParallelLayout(tp=args.tp, pp=args.pp),
        tokenizer_from=args.hf_model_path,
        trust_remote_code=args.trust_remote_code,
    )
    params = SamplingParams(max_new_tokens=args.max_new_tokens)
    for piece in generate_text(model, tokenizer, args.prompt, params, eos_token_ids=eos_token_ids):
        if process_groups.rank() == 0:
            print(piece, end="", flush=True)
    if process_groups.rank() == 0:
        print()
    process_groups.destroy()


if __name__ == "__main__":
    try:
        main()
    except BridgeError as error:
        sys.exit(f"error: {error}")
