"""Running a model: generation and a training step, compared with transformers on the same weights and tokens.

    OMP_NUM_THREADS=2 PYTHONPATH=. uv run python benchmarks/running.py generate --dtype float32 --prompt 32
    OMP_NUM_THREADS=2 PYTHONPATH=. uv run python benchmarks/running.py step --batch 2 --length 128

The model is SmolLM2-135M-Instruct (`uv sync --group quickstart`). Both sides take turns in one process, and each round
gives a ratio. Generation is greedy, and transformers uses its cache. A step is forward, loss and backward.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron.bridge import AutoBridge
from megatron.bridge.cli import quickstart
from megatron.bridge.inference import SamplingParams
from megatron.bridge.inference.generate import generate_tokens
from megatron.bridge.models.transformer.decoder_config import set_dtype


def main() -> None:
    """Runs the benchmark and prints each round's seconds and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "step"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a training step")
    parser.add_argument("--length", type=int, default=128, help="tokens of each of its sequences")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    hf_model, model, text = _models(getattr(torch, args.dtype))
    if args.what == "generate":
        prompt = torch.tensor([(text * args.prompt)[: args.prompt]])
        ours, theirs = _generation(model, prompt, args.new), _hf_generation(hf_model, prompt, args.new)
        num_same = sum(mine == other for mine, other in zip(ours(), theirs(), strict=True))
        print(f"  {num_same} of {args.new} tokens are the same")
        amount = args.new
    else:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 49152, (args.batch, args.length + 1), generator=generator)
        ours, theirs = _step(model, tokens), _hf_step(hf_model, tokens)
        torch.testing.assert_close(ours(), theirs(), rtol=1e-2 if args.dtype == "bfloat16" else 1e-5, atol=0.0)
        amount = args.batch * args.length
    ratios = []
    for _ in range(args.rounds):
        mine, others = _seconds(ours), _seconds(theirs)
        ratios.append(others / mine)
        print(f"  {amount / mine:7.1f} tokens/s, transformers {amount / others:7.1f}: {ratios[-1]:.2f}x", flush=True)
    print(f"  median {statistics.median(ratios):.2f}x of transformers' speed")


def _models(dtype: torch.dtype) -> tuple[torch.nn.Module, list[torch.nn.Module], list[int]]:
    """The same model in transformers and in Megatron-Core, and the tokens of a text."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quickstart.write_hf_folder(quickstart.find_gguf(), folder)
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider()
        set_dtype(provider, dtype)
        model = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
        text = AutoTokenizer.from_pretrained(folder)(quickstart.PROMPT).input_ids
    return hf_model, model, text


def _generation(model: list[torch.nn.Module], prompt: torch.Tensor, num_new: int) -> Callable[[], list[int]]:
    params = SamplingParams(max_new_tokens=num_new)
    return lambda: list(generate_tokens(model, prompt[0].tolist(), params))


def _hf_generation(model: torch.nn.Module, prompt: torch.Tensor, num_new: int) -> Callable[[], list[int]]:
    options = {"max_new_tokens": num_new, "min_new_tokens": num_new, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, **options)[0, prompt.shape[1] :].tolist()


def _step(model: list[torch.nn.Module], tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    chunk = model[0].train()

    def step() -> torch.Tensor:
        chunk.zero_grad()
        loss = chunk(inputs, positions, None, labels=labels).float().mean()
        loss.backward()
        return loss.detach()

    return step


def _hf_step(model: torch.nn.Module, tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model.train()

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = model(inputs, shift_labels=labels, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    from megatron.bridge import runtime

    runtime.enter()
    main()
