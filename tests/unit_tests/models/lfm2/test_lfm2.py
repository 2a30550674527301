"""LFM2's short convolution, its rule for the size of the MLP, and its router, each against transformers alone."""

from typing import Any

import pytest
import torch
import transformers
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.packed_seq_params import PackedSeqParams
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeTopKRouter

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError, UnsupportedConfigError
from tests.rounding import ROUNDING
from tests.tiny_models import TINY_MODELS


def bridge_of(name: str) -> AutoBridge:
    return AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())


def layer_of(name: str, index: int) -> Any:
    model = bridge_of(name).to_megatron_model(load_weights=False, wrap_with_ddp=False)
    return model[0].decoder.layers[index]


def hf_mlp_size(hf_config: Any) -> int:
    with torch.device("meta"):
        return transformers.Lfm2ForCausalLM(hf_config).model.layers[0].feed_forward.w1.out_features


@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("multiplier", [1, 1.3])
@pytest.mark.parametrize("multiple_of", [1, 20, 256])
@pytest.mark.parametrize("size", [96, 101])
def test_size_of_the_mlp(adjust: bool, multiplier: float, multiple_of: int, size: int) -> None:
    hf_config = TINY_MODELS["lfm2"].hf_config()
    hf_config.intermediate_size, hf_config.block_auto_adjust_ff_dim = size, adjust
    hf_config.block_ffn_dim_multiplier, hf_config.block_multiple_of = multiplier, multiple_of
    provider = AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)
    assert provider.ffn_hidden_size == hf_mlp_size(hf_config)


def test_a_changed_size_is_stated_as_it_is() -> None:
    bridge = bridge_of("lfm2")
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.ffn_hidden_size = 72
    provider.finalize()
    values = bridge._model_bridge.megatron_to_hf_config(provider)
    assert hf_mlp_size(transformers.Lfm2Config(**values)) == 72


def test_packed_sequences_do_not_see_each_other() -> None:
    conv = layer_of("lfm2-tied-biases", 1).self_attention
    x = 10 * torch.randn(11, 1, 64, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, 2, 7, 11], dtype=torch.int32)
    whole, _ = conv(x, packed_seq_params=PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends))
    parts = [conv(part)[0] for part in x.split([2, 5, 4])]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=ROUNDING)
    assert (whole - conv(x)[0]).abs().max() > 10 * ROUNDING


def test_scores_near_zero_are_divided_as_by_transformers() -> None:
    """Their sum is so small that what is added to it counts."""
    router = layer_of("lfm2-moe", 1).mlp.router
    gate = Lfm2MoeTopKRouter(TINY_MODELS["lfm2-moe"].hf_config())
    x = torch.rand(5, 1, 64, generator=torch.Generator().manual_seed(0))
    weight = -0.4 - 0.02 * torch.rand(4, 64, generator=torch.Generator().manual_seed(1))
    bias = torch.tensor([0.0, 1e-7, 2e-6, 0.0])
    with torch.no_grad():
        router.weight.copy_(weight)
        router.expert_bias.copy_(bias)
        gate.weight.copy_(weight)
        scores, chosen = gate(x[:, 0], bias)[1:]
        probs, routing_map = router(x)
    expected = torch.zeros(5, 4).scatter(1, chosen, scores)
    assert (expected.sum(1) < 0.99 * 1.5).all()
    assert torch.equal(routing_map, expected > 0)
    torch.testing.assert_close(probs, expected, rtol=ROUNDING, atol=0)


def test_another_context_is_refused() -> None:
    conv = layer_of("lfm2", 0).self_attention
    with pytest.raises(BridgeError, match="StaticInferenceContext keeps no state"):
        conv(torch.zeros(3, 1, 64), inference_context=StaticInferenceContext(2, 8))


def test_context_parallelism_is_refused() -> None:
    provider = bridge_of("lfm2").to_megatron_provider(load_weights=False)
    provider.context_parallel_size = 2
    with pytest.raises(UnsupportedConfigError, match="context_parallel_size must be 1"):
        provider.finalize()
