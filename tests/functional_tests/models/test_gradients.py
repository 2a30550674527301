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
    "gemma4-keys-are-values", "gemma4-e2b", "granite", "hunyuan-dense", "lfm2-tied-biases", "ministral3", "nemotron",
    "olmo2",
    "phi-tied-qk-norm", "stablelm-head-norms",
]  # fmt: skip
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {},
    "tp2-sp": {"sequence_parallel": True},
    "tp2-sp-recompute": {"sequence_parallel": True, **RECOMPUTE},
}
CASES = [
    *((name, layout) for name in NAMES for layout in ("tp2", "tp2-sp")),
    ("gemma4-e2b", "tp2-sp-recompute"),  # its layers hand on more than hidden states
    ("gemma4-moe", "tp2-sp"),
]


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


def _gradients_of_stages(folder: Path, tokens: torch.Tensor, weights: torch.Tensor, fields: dict[str, Any]) -> Any:
    """The same on two pipeline stages, each sequence being a microbatch."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in {"pipeline_model_parallel_size": 2, **fields}.items():
        setattr(provider, name, value)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    positions = torch.arange(tokens.shape[1])[None]

    def forward_step(numbers: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
        number = next(numbers)
        row = weights[number] * len(tokens)  # megatron-core takes the mean over microbatches
        return chunk(tokens[number][None], positions, None), lambda logits: ((logits * row).sum(), {})

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(range(len(tokens))),
        model=model,
        num_microbatches=len(tokens),
        seq_length=tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    if provider.share_embeddings_and_output_weights:
        embedding = model[0].shared_embedding_or_output_weight()
        dist.all_reduce(embedding.grad, group=parallel_state.get_embedding_group())
    parameters = dict(model[0].named_parameters())
    # Every rank has every task: those of the other stage, which have no weight here, and those of buffers stay.
    tasks = [
        replace(task, param_weight=parameters[task.param_name].grad)
        if task.param_weight is not None and task.param_name in parameters
        else task
        for task in bridge.get_conversion_tasks(model)
    ]
    return dict(bridge.export_hf_weights(model, conversion_tasks=tasks))


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_gradients(name: str, layout: str, tmp_path: Path) -> None:
    check(name, _gradients, LAYOUTS[layout], tmp_path, tp=2)


@pytest.mark.parametrize("fields", [{}, RECOMPUTE], ids=["pp2", "pp2-recompute"])
def test_gradients_of_pipeline_stages(fields: dict[str, Any], tmp_path: Path) -> None:
    """Where stages hand over more than hidden states, and layers use keys and values of another stage."""
    check("gemma4-e2b", _gradients_of_stages, fields, tmp_path, pp=2)


def check(name: str, gradients: Any, fields: dict[str, Any], folder: Path, **sizes: int) -> None:
    """Raises unless the gradients on two ranks are those of transformers."""
    hf_model = TINY_MODELS[name].save(folder)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, 24), generator=generator)
    weights = torch.randn(2, 24, hf_model.config.vocab_size, generator=generator)
    (hf_model(tokens).logits * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in hf_model.named_parameters()}
    for found in run_ranks(gradients, 2, folder, tokens, weights, fields, **sizes):
        assert expected.keys() <= found.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            assert (found[name] - gradient).abs().max().item() <= 2e-5 * max(scale, 1), name
