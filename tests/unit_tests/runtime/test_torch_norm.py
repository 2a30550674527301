"""`TorchNorm` against the norms of transformers and torch."""

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.runtime.norm import TorchNorm

HIDDEN = 96
REFERENCES = {
    ("RMSNorm", False, False): LlamaRMSNorm,
    ("RMSNorm", False, True): Olmo2RMSNorm,
    ("RMSNorm", True, False): GemmaRMSNorm,
    ("LayerNorm", False, False): torch.nn.LayerNorm,
    ("LayerNorm", True, False): NemotronLayerNorm1P,
}


def config(normalization: str = "RMSNorm", **changes) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, normalization=normalization, **changes
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("normalization", "zero_centered", "in_fp32"), REFERENCES)
def test_equals_the_reference_bit_for_bit(normalization, zero_centered, in_fp32, dtype):
    settings = config(normalization, layernorm_zero_centered_gamma=zero_centered, params_dtype=dtype)
    settings.norm_weight_in_fp32 = in_fp32
    norm = TorchNorm(settings, HIDDEN, 1e-3)
    reference = REFERENCES[normalization, zero_centered, in_fp32](HIDDEN, eps=1e-3).to(dtype)
    initial = {name: parameter.clone() for name, parameter in reference.named_parameters()}
    if not isinstance(reference, NemotronLayerNorm1P):  # it starts at 1 + 1
        torch.testing.assert_close(dict(norm.named_parameters()), initial, rtol=0, atol=0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter)
    norm.load_state_dict(reference.state_dict())
    assert all(parameter.dtype == dtype for parameter in norm.parameters())

    x = (torch.randn(7, 3, HIDDEN) * 5).to(dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((norm, reference), inputs, strict=True)]
    assert outputs[0].dtype == dtype
    assert torch.equal(outputs[0], outputs[1])

    for output in outputs:
        output.float().square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=0)
    for mine, theirs in zip(norm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)


def test_the_statistics_are_fp32():
    norm = TorchNorm(config(params_dtype=torch.bfloat16), HIDDEN, 0.0)
    x = torch.full((HIDDEN,), 300.0, dtype=torch.bfloat16)
    x[0] = 1.0
    exact = x.double() / x.double().square().mean().sqrt()
    assert torch.equal(norm(x), exact.to(torch.bfloat16))


def test_arguments_replace_the_config():
    norm = TorchNorm(
        config("RMSNorm", layernorm_zero_centered_gamma=True), 8, normalization="LayerNorm", zero_centered_gamma=False
    )
    assert torch.equal(norm.weight, torch.ones(8))
    assert torch.equal(norm.bias, torch.zeros(8))


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_parameters_are_marked_for_sequence_parallelism(sequence_parallel):
    size = {"tensor_model_parallel_size": 2} if sequence_parallel else {}
    norm = TorchNorm(config("LayerNorm", sequence_parallel=sequence_parallel, persist_layer_norm=True, **size), 8)
    assert [parameter.sequence_parallel for parameter in norm.parameters()] == [sequence_parallel] * 2


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        assert TorchNorm(config(), 8).weight.is_meta


def test_an_unknown_normalization_is_an_error():
    with pytest.raises(UnsupportedConfigError, match="'L2Norm' is not known; expected 'RMSNorm' or 'LayerNorm'"):
        TorchNorm(config("L2Norm"), 8)
