"""megatron-core itself, without CUDA: training, and every layout against one rank."""

import re
import tempfile
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_data_parallel_rng_tracker_name
from megatron.core.transformer.torch_norm import L2Norm

from megatron.bridge.transport import process_groups
from tests.ranks import run_ranks
from tests.rounding import ROUNDING
from tests.unit_tests.runtime import tiny_gpt

DENSE: dict[str, Any] = {"num_layers": 4}
MOE = {
    "num_layers": 4,
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "moe_aux_loss_coeff": 0.0,
}
ALLTOALL = {**MOE, "moe_token_dispatcher_type": "alltoall"}
SP = {"sequence_parallel": True}

LAYOUTS = {
    "tp2": ({"tp": 2}, DENSE),
    "tp2-sp": ({"tp": 2}, {**DENSE, **SP}),
    "tp2-sp-layernorm": ({"tp": 2}, {**DENSE, **SP, "normalization": "LayerNorm"}),
    "tp2-sp-zero-centered": ({"tp": 2}, {**DENSE, **SP, "layernorm_zero_centered_gamma": True}),
    "pp2": ({"pp": 2}, DENSE),
    "pp2-vpp2": ({"pp": 2, "vpp": 2}, DENSE),
    "pp2-variable-lengths": ({"pp": 2}, {**ALLTOALL, "variable_seq_lengths": True}),
    "ep2-alltoall": ({"ep": 2}, ALLTOALL),
    "ep2-alltoall-overlap": ({"ep": 2}, {**ALLTOALL, "moe_shared_expert_overlap": True}),
    "ep2-allgather": ({"ep": 2}, {**MOE, "moe_token_dispatcher_type": "allgather"}),
    "tp2-sp-etp2": ({"tp": 2}, {**ALLTOALL, **SP}),
    "tp2-sp-ep2-etp1": ({"tp": 2, "ep": 2, "etp": 1}, {**ALLTOALL, **SP}),
    "tp2-sp-ep2-etp2": ({"tp": 2, "ep": 2}, {**ALLTOALL, **SP}),
}


def weights(chunks: list[DistributedDataParallel]) -> dict[str, torch.nn.Parameter]:
    """Every parameter of this rank, by the name that it has on one rank."""
    named = {}
    num_local_experts = 4 // parallel_state.get_expert_model_parallel_world_size()
    first_expert = num_local_experts * parallel_state.get_expert_model_parallel_rank()
    for chunk in chunks:
        layers = chunk.module.decoder.layers
        for name, parameter in chunk.module.named_parameters():
            if match := re.search(r"layers\.(\d+)\.", name):
                name = name.replace(match[0], f"layers.{layers[int(match[1])].layer_number - 1}.", 1)
            if match := re.search(r"experts\.(\d+)\.", name):
                name = name.replace(match[0], f"experts.{int(match[1]) + first_expert}.", 1)
            named[name] = parameter
    return named


def shard(full: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """This rank's part of a whole weight or gradient."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    group = parallel_state.get_tensor_model_parallel_group()
    if not getattr(parameter, "allreduce", True):  # an expert's
        group = parallel_state.get_expert_tensor_parallel_group()
    return full.chunk(group.size(), parameter.partition_dim)[group.rank()]


def one_rank(changes: dict) -> tuple[dict, dict, float]:
    chunks = tiny_gpt.wrapped_chunks(tiny_gpt.gpt_config(**changes))
    named = weights(chunks)
    with torch.no_grad():
        for parameter in named.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    loss = tiny_gpt.forward_backward(chunks)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    return values, {name: parameter.main_grad.clone() for name, parameter in named.items()}, loss


def several_ranks(changes: dict, values: dict, grads: dict) -> tuple[float | None, set[str]]:
    chunks = tiny_gpt.wrapped_chunks(tiny_gpt.gpt_config(**changes), distributed_optimizer=False)
    named = weights(chunks)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(shard(values[name], parameter))
    loss = tiny_gpt.forward_backward(chunks)
    largest = max(grad.abs().max() for grad in grads.values())
    for name, parameter in named.items():
        expected = shard(grads[name], parameter)
        assert expected.abs().max() > 10 * ROUNDING * largest, name
        assert (parameter.main_grad - expected).abs().max() <= ROUNDING * largest, name
    return loss, set(named)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_equal_those_of_one_rank(layout):
    sizes, changes = LAYOUTS[layout]
    single = {**changes, "sequence_parallel": False, "moe_shared_expert_overlap": False}
    ((values, grads, loss),) = run_ranks(one_rank, 1, single)
    num_ranks = sizes.get("pp", 1) * max(sizes.get("tp", 1), sizes.get("ep", 1) * sizes.get("etp", sizes.get("tp", 1)))
    results = run_ranks(several_ranks, num_ranks, changes, values, grads, **sizes)
    losses = [result[0] for result in results if result[0] is not None]
    assert losses
    torch.testing.assert_close(losses, [loss] * len(losses), rtol=0, atol=ROUNDING)
    assert set.union(*(result[1] for result in results)) == set(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [{}, {"tp": 2}, {"pp": 2}])
def test_training_lowers_the_loss(layout, dtype):
    def train():
        config = tiny_gpt.gpt_config(
            params_dtype=dtype, pipeline_dtype=dtype, bf16=dtype == torch.bfloat16, sequence_parallel="tp" in layout
        )
        return tiny_gpt.train(config, 8)[0]

    for losses in run_ranks(train, 2, **layout):
        assert not losses or losses[-1] < losses[0] - 0.5


def test_a_checkpoint_of_one_layout_is_read_in_another(tmp_path):
    tokens = {name: tensor for name, tensor in tiny_gpt.batch().items() if name != "labels"}

    def save():
        model = tiny_gpt.gpt_model(tiny_gpt.gpt_config()).eval()
        dist_checkpointing.save(model.sharded_state_dict(), str(tmp_path))
        return model(**tokens).detach()

    def load():
        model = tiny_gpt.gpt_model(tiny_gpt.gpt_config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), str(tmp_path)))
        return gather_from_tensor_model_parallel_region(model(**tokens)).detach()

    (saved,) = run_ranks(save, 1)
    for loaded in run_ranks(load, 2, tp=2):
        torch.testing.assert_close(loaded, saved, rtol=0, atol=ROUNDING)


def test_the_generators_of_the_ranks():
    def draws():
        with get_cuda_rng_tracker().fork(get_data_parallel_rng_tracker_name()):
            same = torch.randn(4)
        return tiny_gpt.dropout_mask(), tiny_gpt.dropout_mask(), same, torch.randn(4)

    for seed in (1, 2):
        first, second = run_ranks(draws, 2, tp=2, seed=seed), run_ranks(draws, 2, tp=2, seed=seed)
        torch.testing.assert_close(first, second, rtol=0, atol=0)  # reproducible
        (mask, next_mask, same, default), (other_mask, _, other_same, other_default) = first
        assert not torch.equal(mask, next_mask)
        assert not torch.equal(mask, other_mask)  # tensor-parallel regions differ between ranks
        assert torch.equal(same, other_same)
        assert torch.equal(default, other_default)
        assert torch.equal(default, torch.randn(4, generator=torch.Generator().manual_seed(seed)))


def test_dropout_is_recomputed_as_it_was():
    def gradients(granularity: str | None):
        recompute = {"recompute_method": "uniform", "recompute_num_layers": 1} if granularity else {}
        config = tiny_gpt.gpt_config(
            hidden_dropout=0.3, attention_dropout=0.3, recompute_granularity=granularity, **recompute
        )
        chunks = tiny_gpt.wrapped_chunks(config)
        loss = tiny_gpt.forward_backward(chunks)
        return loss, {name: parameter.main_grad.clone() for name, parameter in weights(chunks).items()}

    for tp in (1, 2):
        stored, recomputed = run_ranks(gradients, tp, None, tp=tp), run_ranks(gradients, tp, "full", tp=tp)
        torch.testing.assert_close(recomputed, stored, rtol=0, atol=0)


def test_nothing_is_compiled():
    def run():
        from torch._dynamo.utils import counters

        L2Norm(8)(torch.ones(2, 8))
        fused = {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu, "bias_activation_fusion": True}
        config = tiny_gpt.gpt_config(
            **ALLTOALL,
            **fused,
            bias_dropout_fusion=True,
            moe_router_enable_expert_bias=True,
            moe_router_score_function="sigmoid",
        )
        tiny_gpt.forward_backward(tiny_gpt.wrapped_chunks(config))
        return dict(counters["frames"])

    assert run_ranks(run, 1) == [{}]


def test_generation_with_a_key_value_cache():
    def generate():
        from megatron.core.inference.contexts import StaticInferenceContext

        model = tiny_gpt.gpt_model(tiny_gpt.gpt_config()).eval()
        inputs = tiny_gpt.batch()
        tokens, positions = inputs["input_ids"], inputs["position_ids"]
        context = StaticInferenceContext(tiny_gpt.BATCH, tiny_gpt.SEQUENCE)
        pieces = []
        with torch.no_grad():
            whole = model(tokens, positions, inputs["attention_mask"])
            for start, end in [(0, 8), *((i, i + 1) for i in range(8, tiny_gpt.SEQUENCE))]:
                piece = model(tokens[:, start:end], positions[:, start:end], None, inference_context=context)
                context.increment_sequence_len_offset(end - start)
                pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=ROUNDING)

    run_ranks(generate, 1)
    run_ranks(generate, 2, tp=2)


def test_an_asynchronous_save_is_readable():
    def save_and_load():
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

        folder = process_groups.broadcast_object(tempfile.mkdtemp())
        model = tiny_gpt.gpt_model(tiny_gpt.gpt_config())
        request = dist_checkpointing.save(
            model.sharded_state_dict(), folder, async_sharded_save=True, async_strategy="mcore"
        )
        queue = AsyncCallsQueue(persistent=False)
        queue.schedule_async_request(request)
        queue.maybe_finalize_async_calls(blocking=True)
        loaded = dist_checkpointing.load(model.sharded_state_dict(), folder)
        for name, parameter in model.named_parameters():
            assert torch.equal(loaded[name], parameter)

    run_ranks(save_and_load, 2)
