"""The proofs can fail: each of them notices what it is there to notice."""

import pytest
import torch

from megatron.bridge import AutoBridge
from megatron.bridge.transport import process_groups
from megatron.bridge.verification import (
    LogitComparison,
    ParallelLayout,
    compare_logits,
    compare_tensors,
    compare_with,
    hf_reference,
)
from megatron.bridge.verification.bits import BitDifference, bit_difference, same_bits
from tests.ranks import run_ranks
from tests.tiny_folder import VOCAB_SIZE, save_tiny_folder

TOKENS = torch.randint(VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "qwen3", "Qwen3ForCausalLM", torch.float32)


def weights() -> dict[str, torch.Tensor]:
    return {
        "nan": torch.tensor([float("nan"), 1.0]),
        "zero": torch.tensor([0.0, 2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(3.0),
    }


def test_equal_tensors_with_nans():
    result = compare_tensors(weights(), weights().items())
    assert result.passes
    assert (result.num_tensors, result.num_bytes, result.num_dropped) == (3, 16, 0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int64, torch.complex64])
def test_the_first_of_the_different_bits(dtype):
    tensor = torch.arange(24).to(dtype).reshape(2, 3, 4)
    other = tensor.clone()
    assert bit_difference(tensor, other) is None and same_bits(tensor, other)
    other.view(torch.uint8)[1, 2, -1] ^= 1  # the last byte of the last element
    other.view(torch.uint8)[0, 1, 0] ^= 1  # the first byte of element 4
    difference = bit_difference(tensor, other)
    assert isinstance(difference, BitDifference) and (difference.num_elements, difference.first) == (2, 4)
    first_bytes = [bytes(part.view(torch.uint8)[0, 1, : dtype.itemsize].tolist()) for part in (tensor, other)]
    assert [int(bits, 16) for bits in difference.first_bits] == [int.from_bytes(part, "little") for part in first_bytes]
    assert not same_bits(tensor, other)


def test_nothing_compared_is_no_proof():
    assert not compare_tensors({}, []).passes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero": torch.tensor([-0.0, 2.0], dtype=torch.bfloat16)}, "zero: 1 of 2 elements differ"),
        ({"nan": torch.tensor([1.0, float("nan")])}, "nan: 2 of 2 elements differ"),
        ({"nan": torch.tensor([[float("nan"), 1.0]])}, "nan: shape [1, 2], in the source [2]"),
        ({"nan": torch.tensor([float("nan"), 1.0]).half()}, "nan: dtype torch.float16, in the source torch.float32"),
        ({"more": torch.ones(1)}, "more: exported but not in the source"),
        ({"scalar": None}, "scalar: in the source but not exported"),
    ],
)
def test_every_difference_is_named(change, message):
    exported = {name: tensor for name, tensor in (weights() | change).items() if tensor is not None}
    result = compare_tensors(weights(), exported.items())
    assert result.mismatches == (message,)
    assert not result.passes


def test_a_tensor_exported_twice():
    result = compare_tensors(weights(), [*weights().items(), ("scalar", torch.tensor(3.0))])
    assert result.mismatches == ("scalar: exported twice",)


def test_a_wider_dtype_is_cast_back():
    exported = weights() | {"zero": torch.tensor([0.0, 2.0])}
    assert compare_tensors(weights(), exported.items()).passes
    exported["zero"] = torch.tensor([1e-8, 2.0])
    assert compare_tensors(weights(), exported.items()).mismatches == ("zero: 1 of 2 elements differ",)


def test_dropped_tensors_are_not_missed():
    exported = {name: tensor for name, tensor in weights().items() if name != "scalar"}
    result = compare_tensors(weights(), exported.items(), dropped={"scalar"})
    assert (result.passes, result.num_dropped) == (True, 1)


@pytest.mark.parametrize(
    ("comparison", "passes"),
    [
        (LogitComparison(5, 1e-4, 3.0, 2e-4, 5), True),
        (LogitComparison(5, 3e-4, 3.0, 2e-4, 5), False),
        (LogitComparison(5, float("nan"), 3.0, 2e-4, 5), False),
        (LogitComparison(5, 1e-4, 3.0, 2e-4, 5, 8, 8), True),
        (LogitComparison(5, 1e-4, 3.0, 2e-4, 5, 8, 7), False),
    ],
)
def test_passing(comparison, passes):
    assert comparison.passes is passes


def hf_logits(folder) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}])
def test_comparison_on_two_ranks(layout, qwen3_folder):
    def on_a_rank():
        return compare_logits(qwen3_folder, ParallelLayout(**layout), token_ids=TOKENS, num_new_tokens=6)

    first, second = run_ranks(on_a_rank, 2, **layout)
    assert first == second
    assert first.passes
    assert first.num_same_new_tokens == 6
    assert first.scale == hf_logits(qwen3_folder).abs().max()


def test_a_wrong_weight_is_noticed(qwen3_folder):
    process_groups.destroy()
    bridge = AutoBridge.from_hf_pretrained(qwen3_folder)
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    reference = hf_reference(bridge.hf_pretrained, TOKENS, torch.float32, 6)
    assert compare_with(reference, model).passes
    with torch.no_grad():
        attention = model[0].decoder.layers[1].self_attention
        attention.q_layernorm.weight.copy_(attention.q_layernorm.weight.flip(0))
    assert not compare_with(reference, model).passes
    process_groups.destroy()
