"""Sampling, with the warpers of transformers as the definition of each filter."""

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megatron.bridge.errors import BridgeError
from megatron.bridge.inference import SamplingParams
from megatron.bridge.inference.sampling import filter_logits, sample


def logits_of(kind: str) -> torch.Tensor:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(0)) * 3
    if kind == "all equal":
        return torch.zeros(4)  # sums of probabilities meet top_p exactly
    if kind == "ties":
        logits = logits.round()
    if kind == "one certain":
        logits[13] = 100.0
    return logits


@pytest.mark.parametrize("kind", ["plain", "ties", "one certain", "all equal"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 97, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-9])
def test_filtered_logits_are_those_of_transformers(kind, temperature, top_k, top_p):
    warpers = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    logits = logits_of(kind)
    expected = LogitsProcessorList(warpers)(None, logits[None].clone())[0]
    before = logits.clone()
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(filter_logits(logits, params), expected)
    assert torch.equal(logits, before)


def test_samples_have_the_filtered_distribution():
    params = SamplingParams(temperature=1.5, top_k=12, top_p=0.9)
    logits = logits_of("plain")
    probabilities = filter_logits(logits, params).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    num_draws = 5000
    counts = torch.bincount(torch.tensor([sample(logits, params, generator) for _ in range(num_draws)]), minlength=97)
    deviation = (num_draws * probabilities * (1 - probabilities)).sqrt()
    assert 4 < (probabilities > 0).sum() < 12
    assert torch.all((counts - num_draws * probabilities).abs() <= 4.5 * deviation)


def test_temperature_zero_takes_the_largest():
    logits = logits_of("plain")
    assert sample(logits, SamplingParams()) == int(logits.argmax())


def test_half_precision_logits():
    logits = logits_of("plain").bfloat16()
    params = SamplingParams(temperature=0.7, top_p=0.9)
    assert torch.equal(filter_logits(logits, params), filter_logits(logits.float(), params))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, found 0"),
        ({"temperature": -0.1}, r"temperature must be .* found -0.1"),
        ({"temperature": float("nan")}, "found nan"),
        ({"temperature": float("inf")}, "found inf"),
        ({"top_k": -1}, "top_k must be 0 .* found -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], found 0.0"),
        ({"top_p": 1.1}, "found 1.1"),
        ({"top_k": -1, "top_p": 2.0}, "top_k .*; top_p"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(BridgeError, match=message):
        SamplingParams(**values)
