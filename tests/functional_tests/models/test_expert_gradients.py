"""Gradients of mixtures of experts are those of transformers, experts cut over ranks included."""

from pathlib import Path

import pytest
import torch

from tests.functional_tests.models.test_gradients import _gradients
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

# megatron-core trains experts with tensor parallelism only together with sequence parallelism.
FIELDS = {"sequence_parallel": True, "moe_aux_loss_coeff": 0.0}
NAMES = [
    "deepseek-v3",
    "deepseek-v3-no-renormalisation",
    "moonlight",
    "qwen2-moe",
    "gpt-oss",
    "mimo-v2-flash-other-layers",
    "llama4",
    "ernie-4.5-moe",
]


def with_stacked_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds the tensors of all experts, and attention sinks, under the names of transformers' parameters."""
    stacked = {name.replace(".attention_sink_bias", ".sinks"): tensor for name, tensor in tensors.items()}
    for name in tensors:
        if name.endswith(".experts.0.gate_proj.weight"):
            prefix = name.removesuffix(".0.gate_proj.weight")
            count = sum(key.startswith(f"{prefix}.") and key.endswith(".gate_proj.weight") for key in tensors)
            parts = {
                part: torch.stack([tensors[f"{prefix}.{index}.{part}.weight"] for index in range(count)])
                for part in ("gate_proj", "up_proj", "down_proj")
            }
            stacked[f"{prefix}.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
            stacked[f"{prefix}.down_proj"] = parts["down_proj"]
    return stacked


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, tmp_path: Path) -> None:
    hf_model = TINY_MODELS[name].save(tmp_path)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, 24), generator=generator)
    weights = torch.randn(2, 24, hf_model.config.vocab_size, generator=generator)
    (hf_model(tokens).logits * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in hf_model.named_parameters() if parameter.requires_grad}
    etp = 2 if TINY_MODELS[name].splits_experts else 1
    fields = {**FIELDS, "expert_tensor_parallel_size": etp}
    for rank in run_ranks(_gradients, 2, tmp_path, tokens, weights, fields, tp=2, etp=etp):
        found = with_stacked_experts(rank)
        assert expected.keys() <= found.keys()
        for parameter, gradient in expected.items():
            scale = max(gradient.abs().max().item(), 1)
            assert (found[parameter] - gradient).abs().max().item() <= 2e-5 * scale, parameter
