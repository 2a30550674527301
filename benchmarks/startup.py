"""CPU time of starting: Python up to a ready provider, and small commands as whole processes, ranks included.

    PYTHONPATH=. uv run python benchmarks/startup.py
    git worktree add /tmp/before <commit>
    PYTHONPATH=. uv run python benchmarks/startup.py --before /tmp/before    # and the same of another version, in turns

User and system time of all processes, in seconds; the model is a tiny Llama. Commands run with one thread per process.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_PROVIDER = "AutoBridge.from_hf_pretrained(sys.argv[1]).to_megatron_provider().finalize()"
# What follows `python`; HF and OUT are folders.
COMMANDS = {
    "import megatron.bridge": ["-c", "import megatron.bridge"],
    "--help": ["-m", "megatron.bridge", "--help"],
    "provider": ["-c", f"import sys; from megatron.bridge import AutoBridge; {_PROVIDER}", "HF"],
    "import": ["-m", "megatron.bridge", "import", "HF", "OUT"],
    "roundtrip": ["-m", "megatron.bridge", "roundtrip", "HF"],
    "roundtrip --tp 2": ["-m", "megatron.bridge", "roundtrip", "HF", "--tp", "2"],
    "compare --tp 2": ["-m", "megatron.bridge", "compare", "HF", "--tp", "2", "--seq-length", "8"],
}


def save_model(folder: Path) -> None:
    """Writes a Llama with 2 layers and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
    LlamaForCausalLM(config).save_pretrained(folder)


def cpu_seconds(tree: Path, command: list[str], hf: Path) -> float:
    """CPU time of a command, run with the source of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"HF": str(hf), "OUT": str(Path(folder) / "out")}
        environment = {**os.environ, "PYTHONPATH": f"{tree}/src", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        argv = [sys.executable, *(places.get(word, word) for word in command)]
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, env=environment, check=True, capture_output=True, cwd=folder)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of starting.")
    parser.add_argument("--before", type=Path, help="a working tree of the version to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=COMMANDS, help="measure this command alone")
    args = parser.parse_args()
    trees = [*([args.before.resolve()] if args.before else []), Path(__file__).resolve().parent.parent]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for name, command in COMMANDS.items():
            if args.only not in (None, name):
                continue
            rounds = [[cpu_seconds(tree, command, Path(folder)) for tree in trees] for _ in range(args.rounds)]
            medians = "  ".join(f"{statistics.median(times):5.2f} s" for times in zip(*rounds, strict=True))
            ratio = statistics.median(times[-1] / times[0] for times in rounds)
            print(f"{name:24}{medians}" + (f"  {ratio:.2f}x" if args.before else ""), flush=True)


if __name__ == "__main__":
    main()
