"""Gradients are those of transformers, on every layout.

Parity of logits says nothing about the backward pass, where tensor parallelism needs sums of its own.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from megatron.bridge.runtime import capabilities
from tests.ranks import run_ranks
from tests.rounding import Float64, in_float64, inputs_like, tolerance
from tests.tiny_models import TINY_MODELS, TinyModel

RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# Provider fields, on two ranks.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {},
    "tp2-sp": {"sequence_parallel": True},
    "tp2-sp-recompute": {"sequence_parallel": True, **RECOMPUTE},
    "pp2": {},
    "pp2-recompute": RECOMPUTE,
}


class GradientSuite:
    """For models with modules of their own; their test module derives its class from this one.

    Attributes:
        cases: names of variants and layouts. Experts are trained with sequence parallelism, as megatron-core demands.
    """

    cases: ClassVar[Sequence[tuple[str, str]]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        params = []
        for name, layout in self.cases:
            marks = [pytest.mark.ranks(2)]
            if layout == "tp2" and (name, "tp2-sp") in self.cases:  # which needs the same sums, and more
                marks.append(pytest.mark.proof)
            params.append(pytest.param(name, layout, id=f"{name}-{layout}", marks=marks))
        metafunc.parametrize(("name", "layout"), params)

    def test_gradients(self, name: str, layout: str, tmp_path: Path) -> None:
        tiny = TINY_MODELS[name]
        expected, tolerance, inputs = reference(tiny, tmp_path)
        for rank in _on_ranks(tiny, layout, tmp_path, *inputs):
            assert expected.keys() == rank.keys()
            for parameter, gradient in expected.items():
                off = (rank[parameter] - gradient).abs().max().item()
                assert off <= tolerance * size(gradient), parameter


def reference(
    tiny: TinyModel, folder: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, torch.Tensor], float, tuple[torch.Tensor, torch.Tensor]]:
    """Saves a model; transformers' gradients of `(logits * weights).sum()`, with the tokens and these weights.

    Between the two: how far others may be from a gradient, as a part of its `size`.

    Args:
        device: where transformers computes.
    """
    hf_model = tiny.save(folder).to(device)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, 24), generator=generator).to(device)
    weights = torch.randn(2, 24, hf_model.config.vocab_size, generator=generator).to(device)

    def compute(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (model(tokens).logits * weights).sum().backward()
        return _as_stored(model, folder / "gradients")

    wide, results, allowed = in_float64(hf_model), [], 0.0
    for other in inputs_like(tokens):
        results.append(compute(hf_model, other))
        with Float64():
            exact = compute(wide, other)
        for name, value in exact.items():
            allowed = max(allowed, tolerance(results[-1][name] / size(value), value / size(value)))
    return results[0], allowed, (tokens, weights)


def _as_stored(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The gradients of a model of transformers under the names and in the shapes in which it saves weights."""
    gradients = copy.deepcopy(model)
    for gradient, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
        if parameter.requires_grad:
            gradient.data = _gradient(parameter)
    gradients.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def size(gradient: torch.Tensor) -> float:
    """What differences of a gradient are measured by: its largest element, or 1."""
    return max(gradient.abs().max().item(), 1)


def _on_ranks(tiny: TinyModel, layout: str, folder: Path, tokens: torch.Tensor, weights: torch.Tensor) -> list[Any]:
    fields = dict(LAYOUTS[layout])
    if layout.startswith("pp2"):
        return run_ranks(gradients_of_stages, 2, folder, tokens, weights, fields, pp=2)
    etp = 2 if tiny.splits_experts else 1
    if tiny.is_moe:
        fields |= {"moe_aux_loss_coeff": 0.0, "expert_tensor_parallel_size": etp}
    fields["tensor_model_parallel_size"] = 2
    return run_ranks(gradients_of, 2, folder, tokens, weights, fields, tp=2, etp=etp)


def gradients_of(folder: Path, tokens: torch.Tensor, weights: torch.Tensor, fields: dict[str, Any]) -> dict[str, Any]:
    """The gradient of `(logits * weights).sum()` for each HF tensor, on the CPU.

    Args:
        fields: of the provider.
    """
    from megatron.core import parallel_state

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in fields.items():
        setattr(provider, name, value)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    tokens, weights = (tensor.to(capabilities.device()) for tensor in (tokens, weights))
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
    logits = model[0](tokens, positions, None)
    first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    # Vocabulary padding has no weight.
    num_rows = provider.tensor_model_parallel_size * logits.shape[-1]
    rows = torch.nn.functional.pad(weights, (0, num_rows - weights.shape[-1]))
    (logits * rows[..., first : first + logits.shape[-1]]).sum().backward()
    for name, parameter in model[0].named_parameters():
        # What megatron-core's finalize_model_grads does at the end of a training step.
        is_split = provider.sequence_parallel and getattr(parameter, "sequence_parallel", False)
        is_norm_of_heads = "q_layernorm" in name or "k_layernorm" in name
        if is_split or (is_norm_of_heads and not getattr(parameter, "tensor_model_parallel", False)):
            dist.all_reduce(parameter.grad, group=parallel_state.get_tensor_model_parallel_group())
        if not getattr(parameter, "allreduce", True):  # an expert, of which other ranks may hold copies
            dist.all_reduce(parameter.grad, group=parallel_state.get_expert_data_parallel_group())
    return _exported(bridge, model)


def gradients_of_stages(folder: Path, tokens: torch.Tensor, weights: torch.Tensor, fields: dict[str, Any]) -> Any:
    """The same on two pipeline stages, each sequence being a microbatch."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in {"pipeline_model_parallel_size": 2, **fields}.items():
        setattr(provider, name, value)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    tokens, weights = (tensor.to(capabilities.device()) for tensor in (tokens, weights))
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]

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
    return _exported(bridge, model)


def _exported(bridge: AutoBridge, model: Any) -> dict[str, torch.Tensor]:
    """The gradients in the place of the weights, exported."""
    parameters = dict(model[0].named_parameters())
    # Every rank has every task: those of another stage, which have no weight here, and those of buffers stay.
    tasks = [
        replace(task, param_weight=_gradient(parameters[task.param_name]))
        if task.param_weight is not None and task.param_name in parameters
        else task
        for task in bridge.get_conversion_tasks(model)
    ]
    return dict(bridge.export_hf_weights(model, cpu=True, conversion_tasks=tasks))


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Zeros for a parameter that has no part in the result, as the indexer that only chooses keys."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
