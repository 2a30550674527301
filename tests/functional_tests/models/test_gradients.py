"""Gradients of families with modules of their own are those of transformers, on every layout.

Parity of logits says nothing about the backward pass, where tensor parallelism needs sums of its own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron.bridge import AutoBridge
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

NAMES = [
    "apertus-tied-bias", "cohere2", "gemma2", "gemma3",
    "gemma4-keys-are-values", "granite", "hunyuan-dense", "lfm2-tied-biases", "ministral3", "nemotron", "olmo2",
    "phi-tied-qk-norm", "stablelm-head-norms",
]  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {"tp2": {}, "tp2-sp": {"sequence_parallel": True}}


def _gradients(folder: Path, tokens: torch.Tensor, weights: torch.Tensor, fields: dict[str, Any]) -> dict[str, Any]:
    """The gradient of `(logits * weights).sum()` for each HF tensor."""
    from megatron.core import parallel_state

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in {"tensor_model_parallel_size": 2, **fields}.items():
        setattr(provider, name, value)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    logits = model[0](tokens, torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1), None)
    first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    # Vocabulary padding has no weight.
    rows = torch.nn.functional.pad(weights, (0, 2 * logits.shape[-1] - weights.shape[-1]))
    (logits * rows[..., first : first + logits.shape[-1]]).sum().backward()
    for name, parameter in model[0].named_parameters():
        # What megatron-core's finalize_model_grads does at the end of a training step.
        is_split = provider.sequence_parallel and getattr(parameter, "sequence_parallel", False)
        is_norm_of_heads = "q_layernorm" in name or "k_layernorm" in name
        if is_split or (is_norm_of_heads and not getattr(parameter, "tensor_model_parallel", False)):
            dist.all_reduce(parameter.grad, group=parallel_state.get_tensor_model_parallel_group())
        if not getattr(parameter, "allreduce", True):  # an expert, of which other ranks may hold copies
            dist.all_reduce(parameter.grad, group=parallel_state.get_expert_data_parallel_group())
    parameters = dict(model[0].named_parameters())
    tasks = [
        replace(task, param_weight=parameters[task.param_name].grad)
        for task in bridge.get_conversion_tasks(model)
        if task.param_name in parameters
    ]
    return dict(bridge.export_hf_weights(model, conversion_tasks=tasks))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    hf_model = TINY_MODELS[name].save(tmp_path)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, 24), generator=generator)
    weights = torch.randn(2, 24, hf_model.config.vocab_size, generator=generator)
    (hf_model(tokens).logits * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in hf_model.named_parameters()}
    results = run_ranks(_gradients, 2, tmp_path, tokens, weights, layout, tp=2)
    for found in results:
        assert expected.keys() <= found.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            assert (found[name] - gradient).abs().max().item() <= 2e-5 * max(scale, 1), name
