"""torch's attention kernels compute what megatron-core writes out, with every kind of mask."""

from itertools import product

import pytest
import torch

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.core_attention import DotProductAttention
from tests.rounding import tolerance


def attention(window: tuple[int, int] | None = None, **changes: object) -> DotProductAttention:
    provider = GPTModelProvider(
        num_layers=1,
        hidden_size=48,
        num_attention_heads=6,
        num_query_groups=2,
        ffn_hidden_size=48,
        vocab_size=64,
        seq_length=32,
        window_size=window,
        **changes,
    )
    model = provider.provide_distributed_model(wrap_with_ddp=False)[0]
    core = model.decoder.layers[0].self_attention.core_attention
    assert isinstance(core, DotProductAttention)
    return core


def padding(num_queries: int, num_keys: int) -> torch.Tensor:
    """Causal; the second sequence does not see its first three keys."""
    hidden = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(1 + num_keys - num_queries)
    hidden = hidden.expand(2, 1, -1, -1).clone()
    hidden[1, :, :, :3] = True
    return hidden


# With one key and padding, nothing would be seen.
SHAPES = [*product([(12, 12), (1, 12), (5, 12)], [False, True]), ((1, 1), False)]


@pytest.mark.parametrize("window", [None, (4, 0), (30, 0)])
@pytest.mark.parametrize(("shape", "is_padded"), SHAPES)
def test_as_megatron_core_writes_it_out(window, shape, is_padded):
    num_queries, num_keys = shape
    core = attention(window, softmax_scale=0.3, attention_dropout=0.0)
    assert core.has_kernel
    generator = torch.Generator().manual_seed(0)
    parts = [(num_queries, 6), (num_keys, 2), (num_keys, 2)]
    inputs = [torch.randn(length, 2, heads, 8, generator=generator, requires_grad=True) for length, heads in parts]
    wide = [part.detach().double().requires_grad_() for part in inputs]
    mask = padding(num_queries, num_keys) if is_padded else None
    found = core(*inputs, mask)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    core.has_kernel = False
    if mask is None and window is None and 1 < num_queries < num_keys:  # megatron-core refuses to choose a mask
        mask = padding(num_queries, num_keys)[:1]
    expected, exact = (core(*parts, mask) for parts in (inputs, wide))
    is_seen = torch.ones(2, num_queries, dtype=torch.bool)
    if is_padded and num_queries == num_keys:
        is_seen[1, :3] = False  # what sees nothing gives what no one reads
    found, expected, exact = (output.transpose(0, 1)[is_seen] for output in (found, expected, exact))
    compared = [(found, expected, exact)]
    if is_seen.all():
        computed = (torch.autograd.grad(out.square().sum(), of) for out, of in ((expected, inputs), (exact, wide)))
        compared += zip(gradients, *computed, strict=True)
    for ours, theirs, in_float64 in compared:
        assert (ours - theirs).abs().max() <= tolerance(theirs, in_float64)


@pytest.mark.parametrize("changes", [{"attn_logit_softcapping": 5.0}, {"softmax_type": "learnable"}])
def test_what_the_kernels_lack_is_written_out(changes):
    assert not attention(**changes).has_kernel


def test_dropout_is_for_training():
    core = attention(attention_dropout=0.5)
    query, key = torch.randn(12, 2, 6, 8), torch.randn(12, 2, 2, 8)
    outputs = [core.train(mode)(query, key, key, None) for mode in (True, True, False, False)]
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
