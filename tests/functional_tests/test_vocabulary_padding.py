"""Rows that are added to the vocabulary for tensor parallelism take no part in anything: transformers has none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.bridge import AutoBridge
from tests.functional_tests.test_multi_token_prediction import reference_logits, save_with_prediction_layer
from tests.ranks import run_ranks
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS

TOKENS = torch.randint(0, 131, (2, 25), generator=torch.Generator().manual_seed(1))
INPUTS, LABELS = TOKENS[:, :-1], TOKENS[:, 1:]
# Capped logits of padding, if they were only zero, would be as likely as others.
MODELS = ("llama-odd-vocabulary", "llama-odd-vocabulary-tied", "gemma2", "nemotron-h", "mamba2")
# With 128 rows on each of two ranks, the second has 3 of 131 tokens, and none of 99.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1-padded": {"make_vocab_size_divisible_by": 128},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2-padded": {"tensor_model_parallel_size": 2, "make_vocab_size_divisible_by": 128},
    "tp2-sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "tp2-fused-loss": {"tensor_model_parallel_size": 2, "cross_entropy_loss_fusion": True},
}
CASES = [(name, layout) for name in MODELS for layout in ("tp2", "tp2-padded")]
CASES += [("llama-odd-vocabulary-tied", layout) for layout in LAYOUTS if layout not in ("tp2", "tp2-padded")]


def _tiny(name: str, vocab_size: int) -> Any:
    return replace(TINY_MODELS[name], config={**TINY_MODELS[name].config, "vocab_size": vocab_size})


def _train(folder: Path, fields: dict[str, Any], tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and the gradient of each HF tensor."""
    from megatron.core import parallel_state

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    for name, value in fields.items():
        setattr(provider, name, value)
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    loss = model(inputs, positions, None, labels=labels).mean()
    loss.backward()
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        if provider.sequence_parallel and getattr(parameter, "sequence_parallel", False):
            dist.all_reduce(parameter.grad, group=parallel_state.get_tensor_model_parallel_group())
    last = provider.tensor_model_parallel_size - 1
    if parallel_state.get_tensor_model_parallel_rank() == last:
        table = (
            model.shared_embedding_or_output_weight()
            if provider.share_embeddings_and_output_weights
            else model.output_layer.weight
        )
        num_padding = min(provider.padded_vocab_size - provider.vocab_size, len(table))
        assert num_padding > 0 and not table.grad[-num_padding:].any()
    tasks = [
        replace(task, param_weight=parameters[task.param_name].grad)
        for task in bridge.get_conversion_tasks(model)
        if task.param_name in parameters
    ]
    return loss.detach(), dict(bridge.export_hf_weights(model, cpu=True, conversion_tasks=tasks))


@pytest.mark.parametrize(("name", "layout"), CASES, ids=str)
@pytest.mark.parametrize("vocab_size", [131, 99])
def test_loss_and_gradients_are_those_of_transformers(name: str, layout: str, vocab_size: int, tmp_path: Path) -> None:
    fields, tokens = LAYOUTS[layout], TOKENS % vocab_size
    hf_model = _tiny(name, vocab_size).save(tmp_path)
    expected, tolerance = reference(hf_model, tokens, _loss_and_gradients)
    prefix = "backbone." if name == "nemotron-h" else "model."  # in its files
    names = [key.replace("model.", prefix, 1) for key, _ in hf_model.named_parameters()]
    tp = fields.get("tensor_model_parallel_size", 1)
    for loss, gradients in run_ranks(_train, tp, tmp_path, fields, tokens, tp=tp):
        found = torch.cat([loss[None], *(gradients[key].flatten() for key in names)])
        assert (found - expected).abs().max().item() <= tolerance


def _loss_and_gradients(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The loss, followed by the gradient of each parameter."""
    model.zero_grad()
    with torch.enable_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
    return torch.cat([loss.detach()[None], *(parameter.grad.flatten() for parameter in model.parameters())])


def _prediction_loss(folder: Path, tp: int) -> tuple[float, float]:
    """The loss of the prediction layer, and how many tokens it was right about."""
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider()
    provider.tensor_model_parallel_size, provider.sequence_parallel = tp, tp > 1
    provider.expert_tensor_parallel_size = 1
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
    model.train()  # otherwise the loss is not recorded
    model(INPUTS, torch.arange(INPUTS.shape[1]).expand_as(INPUTS), None, labels=LABELS)
    tracker = MTPLossLoggingHelper.tracker
    return tracker["loss_values"].item(), tracker["correct_values"].item()


def test_loss_of_prediction_layers(tmp_path: Path) -> None:
    model, prediction = save_with_prediction_layer("deepseek-v3", tmp_path, num_nextn_predict_layers=1, vocab_size=131)
    labels = TOKENS[:, 2:]
    expected, tolerance = reference(
        (model, prediction),
        INPUTS,
        lambda models, tokens: F.cross_entropy(reference_logits(*models, tokens).flatten(0, 1), labels.flatten()),
    )
    num_right = (reference_logits(model, prediction, INPUTS).argmax(-1) == labels).sum().item()
    for tp in (1, 2):
        for loss, correct in run_ranks(_prediction_loss, tp, tmp_path, tp, tp=tp, etp=1):
            assert abs(loss - expected.item()) <= tolerance and correct == num_right


def _logits(folder: Path, fields: dict[str, Any]) -> torch.Tensor:
    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider()
    provider.apply_overrides_and_finalize(overrides=fields)
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
    with torch.no_grad():
        return model(INPUTS, torch.arange(INPUTS.shape[1]).expand_as(INPUTS), None)


@pytest.mark.parametrize("parallel_output", [False, True])
@pytest.mark.parametrize("name", ["gemma2", "llama-odd-vocabulary-tied"])
def test_logits_of_padding(name: str, parallel_output: bool, tmp_path: Path) -> None:
    """A softmax, an entropy and a choice of the most likely token are right without knowing the vocabulary's size."""
    hf_model = _tiny(name, 131).save(tmp_path)
    fields = {"tensor_model_parallel_size": 2, "make_vocab_size_divisible_by": 128, "parallel_output": parallel_output}
    expected, tolerance = reference(
        hf_model, INPUTS, lambda model, tokens: torch.distributions.Categorical(logits=model(tokens).logits).entropy()
    )
    found = run_ranks(_logits, 2, tmp_path, fields, tp=2)
    for logits in [torch.cat(found, -1)] if parallel_output else found:
        assert logits.shape[-1] == 256
        probabilities = logits.softmax(-1)
        assert not probabilities[..., 131:].any()
        assert ((logits.logsumexp(-1) - (probabilities * logits).sum(-1)) - expected).abs().max() <= tolerance
