"""Speed and memory of a model of about 1 B parameters: a training step, and every way in and out of the GPU.

Rates stand beside those of the same bytes moved by torch, safetensors or the file system in the same run.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.synthetic import write_random_weights
from megatron.bridge import AutoBridge
from megatron.bridge.runtime import capabilities


def config(is_small: bool) -> transformers.PretrainedConfig:
    """The shape of Llama 3.2 1B; small: a tiny model for a dry run."""
    sizes = {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    if is_small:
        sizes = {name: min(size, 4 if "num" in name else 64) for name, size in sizes.items()}
    return transformers.LlamaConfig(
        **sizes, max_position_embeddings=4096, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def ceilings(is_small: bool) -> dict[str, Any]:
    """What the device does at best: a bfloat16 matrix product, and copies within it and to it."""
    device = capabilities.device()
    size = 128 if is_small else 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    num_bytes = 1 << (16 if is_small else 32)
    source, target = (torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    host = torch.zeros(num_bytes // 4, dtype=torch.uint8, pin_memory=capabilities.has_cuda())
    return {
        "matmul_flops_per_s": 2 * size**3 / best_seconds(lambda: a @ b),
        "copy_bytes_per_s": num_bytes / best_seconds(lambda: target.copy_(source)),
        "host_to_device_bytes_per_s": len(host) / best_seconds(lambda: target[: len(host)].copy_(host)),
    }


def training_step(is_small: bool, matmul_flops_per_s: float) -> dict[str, Any]:
    """Forward, backward and optimizer, in bfloat16 with float32 gradients and master weights, against transformers.

    FLOPs are those of the matrix products and of attention without regard to its mask, as torch counts them in
    transformers' model, three times the forward pass. The optimizer of transformers' step is torch's fused AdamW on
    bfloat16 weights, so only forward and backward are the same work.
    """
    hf_config = config(is_small)
    batch_size, seq_length = (2, 32) if is_small else (4, 2048)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, seq_length)
    tokens = torch.randint(0, hf_config.vocab_size, shape, generator=generator).to(capabilities.device())
    flops = 3 * _forward_flops(hf_config, shape)
    found: dict[str, Any] = {"batch_size": batch_size, "seq_length": seq_length, "flops": flops}
    for name, make in (("megatron", _megatron_step), ("transformers", _hf_step)):
        with peak_memory() as memory:
            forward_backward_s, step_s = _step_seconds(*make(hf_config, tokens))
        found[name] = {
            "forward_backward_s": forward_backward_s,
            "step_s": step_s,
            "tokens_per_s": tokens.numel() / step_s,
            "flops_per_s": flops / step_s,
            "share_of_matmul_rate": flops / step_s / matmul_flops_per_s,
            **memory,
        }
    found["passed"] = True
    return found


def rates(is_small: bool) -> dict[str, Any]:
    """Bytes per second from files to the GPU and back, and to an inference engine, beside plain copies of them."""
    from safetensors.torch import load_file

    device = capabilities.device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_weights(config(is_small), folder / "hf", shard_bytes=4 << 30)
        num_bytes = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
        bridge = AutoBridge.from_hf_pretrained(folder / "hf")
        provider = bridge.to_megatron_provider(load_weights=False)
        provider.perform_initialization = False
        model = provider.provide_distributed_model(wrap_with_ddp=False)
        seconds, memory = {}, {}

        def measure(action: str, run: Callable[[], object], repeats: int = 3) -> None:
            with peak_memory() as used:
                seconds[action] = best_seconds(run, repeats=repeats, warm_ups=0)
            memory[action] = used.get("peak_bytes", 0)

        files = sorted((folder / "hf").glob("*.safetensors"))
        measure("load", lambda: bridge.load_hf_weights(model))
        measure("safetensors load_file", lambda: [load_file(path, device=str(device)) for path in files])
        tasks = bridge.get_conversion_tasks(model)
        source, buffer = (torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
        measure("refit", lambda: _receive(bridge, model, tasks, buffer))
        measure("copy in device memory", lambda: buffer.copy_(source))
        measure("export", lambda: _anew(folder / "out", lambda path: bridge.save_hf_pretrained(model, path)), 2)
        measure("import", lambda: _anew(folder / "ckpt", lambda path: AutoBridge.import_ckpt(folder / "hf", path)), 2)
        measure("cp", lambda: _anew(folder / "copy", lambda path: shutil.copytree(folder / "hf", path)), 2)
        measure("load checkpoint", lambda: bridge.load_megatron_model(folder / "ckpt"), 2)
    return {
        "bytes": num_bytes,
        "bytes_per_s": {action: num_bytes / value for action, value in seconds.items()},
        "peak_bytes": memory,
        "passed": True,
    }


def best_seconds(run: Callable[[], object], repeats: int = 5, warm_ups: int = 2) -> float:
    """The shortest of some runs, each from an idle device to an idle device."""
    for _ in range(warm_ups):
        run()
    seconds = []
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Fills a dict with the most bytes that tensors had on the GPU during the block; it stays empty on the CPU."""
    found: dict[str, int] = {}
    if capabilities.has_cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if capabilities.has_cuda():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()


def _wait() -> None:
    if capabilities.has_cuda():
        torch.cuda.synchronize()


def _forward_flops(hf_config: transformers.PretrainedConfig, shape: tuple[int, int]) -> int:
    with torch.device("meta"):
        hf_model = transformers.LlamaForCausalLM(hf_config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            hf_model(torch.zeros(shape, dtype=torch.int64))
    return int(counter.get_total_flops())


def _step_seconds(forward_backward: Callable[[], object], update: Callable[[], object]) -> tuple[float, float]:
    return best_seconds(forward_backward), best_seconds(lambda: (forward_backward(), update()))


type Step = tuple[Callable[[], object], Callable[[], object]]


def _megatron_step(hf_config: transformers.PretrainedConfig, tokens: torch.Tensor) -> Step:
    from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    provider = AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)
    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    (model,) = provider.provide_distributed_model(ddp_config=ddp_config)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-5, bf16=True, use_distributed_optimizer=True), [model]
    )
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)

    def forward_backward() -> None:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        model(tokens, positions, None, labels=tokens).mean().backward()
        finalize_model_grads([model])

    return forward_backward, optimizer.step


def _hf_step(hf_config: transformers.PretrainedConfig, tokens: torch.Tensor) -> Step:
    with tokens.device:
        hf_model = transformers.LlamaForCausalLM(hf_config).bfloat16()
    optimizer = torch.optim.AdamW(hf_model.parameters(), lr=1e-5, fused=True)

    def forward_backward() -> None:
        optimizer.zero_grad()
        hf_model(tokens, labels=tokens, use_cache=False).loss.backward()

    return forward_backward, optimizer.step


def _receive(bridge: AutoBridge, model: Any, tasks: Any, buffer: torch.Tensor) -> None:
    """Exports the weights as an inference engine receives them: each copied into the receiver's memory."""
    end = 0
    for _, weight in bridge.export_hf_weights(model, conversion_tasks=tasks):
        target = buffer[end : end + weight.nbytes].view(weight.dtype).view(weight.shape)
        target.copy_(weight)
        end += weight.nbytes


def _anew(path: Path, write: Callable[[Path], object]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    write(path)
