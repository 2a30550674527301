"""The gated delta net's kernels against transformers' own."""

import itertools

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as reference

from megatron.bridge.runtime import gated_delta
from tests.rounding import ROUNDING, Float64, tolerance


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def delta_rule_inputs(length: int) -> dict[str, torch.Tensor]:
    q, k = (gated_delta.l2norm(random(1, length, 2, 8, seed=seed)) for seed in (1, 2))
    return {
        "q": q,
        "k": k,
        "v": random(1, length, 2, 6, seed=3),
        "g": -random(1, length, 2, seed=4).exp(),
        "beta": random(1, length, 2, seed=5).sigmoid(),
    }


def test_l2norm():
    x = random(2, 5, 3, 8)
    assert (gated_delta.l2norm(x) - reference.l2norm(x)).abs().max() <= ROUNDING
    assert gated_delta.l2norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_causal_conv1d(length, with_bias):
    x, weight, bias = random(2, length, 6), random(6, 4, seed=1), random(6, seed=2) if with_bias else None
    convolution = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3, bias=with_bias)
    convolution.weight.data = weight[:, None]
    if bias is not None:
        convolution.bias.data = bias
    # transformers convolves with padding on both sides and cuts off what comes after the sequence
    expected = torch.nn.functional.silu(convolution(x.transpose(1, 2))[..., :length]).transpose(1, 2)
    found, state = gated_delta.causal_conv1d(x, weight, bias, activation="silu")
    assert state is None
    assert (found - expected).abs().max() <= ROUNDING


@pytest.mark.parametrize("length", [1, 63, 150])
def test_delta_rule(length):
    inputs = delta_rule_inputs(length)
    names = {"q": "query", "k": "key", "v": "value"}
    theirs = {names.get(name, name): value for name, value in inputs.items()}
    settings = {"initial_state": None, "output_final_state": False}
    expected, _ = reference.torch_recurrent_gated_delta_rule(**theirs, **settings)
    with Float64():
        wide = {name: value.double() for name, value in theirs.items()}
        exact, _ = reference.torch_recurrent_gated_delta_rule(**wide, **settings)
    found, _ = gated_delta.chunk_gated_delta_rule(**inputs)
    assert (found - expected).abs().max() <= tolerance(expected, exact)


def test_packed_sequences_do_not_see_each_other():
    ends = [0, 7, 8, 40]
    packed = torch.tensor(ends)
    inputs, x, weight = delta_rule_inputs(40), random(1, 40, 6), random(6, 4, seed=1)
    whole, _ = gated_delta.chunk_gated_delta_rule(**inputs, cu_seqlens=packed)
    convolved, _ = gated_delta.causal_conv1d(x, weight, cu_seqlens=packed)
    for start, stop in itertools.pairwise(ends):
        alone, _ = gated_delta.chunk_gated_delta_rule(**{name: value[:, start:stop] for name, value in inputs.items()})
        assert torch.equal(whole[:, start:stop], alone)
        assert torch.equal(convolved[:, start:stop], gated_delta.causal_conv1d(x[:, start:stop], weight)[0])
