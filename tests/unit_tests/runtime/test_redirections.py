"""Each redirection lets a real megatron-core code path run, and that path fails when the redirection is taken back."""

import inspect
import tempfile
from collections.abc import Callable

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.state_dict_saver import verify_global_md_reuse
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.optimizer import OptimizerConfig, clip_grads
from megatron.core.optimizer.grad_scaler import DynamicGradScaler
from megatron.core.optimizer.optimizer import FP32Optimizer
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, checkpoint
from megatron.core.timers import Timers
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.utils import get_default_causal_mask, get_sliding_window_causal_mask
from megatron.core.utils import local_multi_tensor_l2_norm
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.utils import _DistWrapper

from megatron.bridge import AutoBridge
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.runtime import cpu, mamba
from megatron.bridge.transport import process_groups
from tests.ranks import RankFailure, run_ranks
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.runtime import tiny_gpt

SCENARIOS: dict[str, tuple[Callable, int]] = {}


def scenario(*paths: str, num_ranks: int = 1):
    def register(function: Callable) -> Callable:
        SCENARIOS.update(dict.fromkeys(paths, (function, num_ranks)))
        return function

    return register


def a_parameter(dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    parameter.grad = torch.full((4,), 2.0, dtype=dtype)
    return parameter


@scenario("torch.cuda:current_device")
def rotary_embedding():
    assert RotaryEmbedding(kv_channels=8, rotary_percent=1.0)(5).shape == (5, 1, 1, 8)


@scenario("torch:Tensor.cuda", "megatron.core.tensor_parallel.data:_build_key_size_numel_dictionaries")
def broadcast_data():
    sent = {"tokens": torch.arange(6).view(2, 3)}
    assert torch.equal(tensor_parallel.broadcast_data(["tokens"], sent, torch.int64)["tokens"], sent["tokens"])


@scenario(
    "torch:Tensor.type",
    "megatron.core.optimizer.clip_grads:get_grad_norm_fp32",
    "megatron.core.optimizer.optimizer:MixedPrecisionOptimizer.__init__",
    "megatron.core.pipeline_parallel.schedules:forward_backward_no_pipelining",
    "torch.cuda:current_stream",
)
def bf16_training():
    losses, _, _ = tiny_gpt.train(tiny_gpt.gpt_config(params_dtype=torch.bfloat16, bf16=True), 6)
    assert losses[-1] < losses[0] - 0.5


@scenario("megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32")
def clipping():
    parameter = a_parameter()
    clip_grads.clip_grad_by_total_norm_fp32([parameter], max_norm=1.0, total_norm=4.0)
    torch.testing.assert_close(parameter.grad, torch.full((4,), 0.5))


@scenario("megatron.core.optimizer.clip_grads:count_zeros_fp32")
def counting_zeros():
    parameter = a_parameter()
    parameter.grad[0] = 0
    group = parallel_state.get_model_parallel_group()
    assert clip_grads.count_zeros_fp32([parameter], grad_stats_parallel_group=group) == 1


@scenario(
    "megatron.core.optimizer.grad_scaler:DynamicGradScaler.__init__",
    "megatron.core.optimizer.grad_scaler:MegatronGradScaler.__init__",
)
def loss_scaling():
    scaler = DynamicGradScaler(4.0, 1.0, 2.0, 0.5, growth_interval=1, hysteresis=1)
    scaler.update(found_inf=True)
    scaler.load_state_dict(scaler.state_dict())
    assert scaler.scale.item() == 2.0


@scenario("megatron.core.optimizer.optimizer:FP32Optimizer.__init__")
def fp32_optimizer():
    optimizer = FP32Optimizer(torch.optim.SGD([a_parameter()]), OptimizerConfig(), lambda *args: None)
    assert optimizer.get_loss_scale().item() == 1.0


@scenario("megatron.core.optimizer.optimizer:MegatronOptimizer.has_grad_norm_group")
def grad_norm_groups():
    config = OptimizerConfig(optimizer="adam", lr=1e-3)
    model = torch.nn.Linear(2, 2)
    optimizer = FP32Optimizer(torch.optim.SGD(model.parameters()), config, lambda *args: None)
    optimizer.grad_stats_parallel_group = parallel_state.get_model_parallel_group()
    assert not optimizer.has_grad_norm_group("mtp")


@scenario("torch.cuda:get_rng_state", "torch.cuda:manual_seed")
def tracker_add():
    before = torch.get_rng_state()
    tracker = CudaRNGStatesTracker()
    tracker.add("mine", 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(tracker.states_["mine"], torch.Generator().manual_seed(7).get_state())


@scenario(
    "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
    "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
)
def recomputed_dropout():
    outside = torch.get_rng_state()
    assert not torch.equal(tiny_gpt.dropout_mask(), tiny_gpt.dropout_mask())
    assert torch.equal(torch.get_rng_state(), outside)

    x = torch.ones(64, requires_grad=True)
    masks = []

    def run(x):
        masks.append(tiny_gpt.dropout_mask())
        return x * masks[-1]

    checkpoint(run, False, x).sum().backward()
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(x.grad, masks[0])


@scenario("torch.cuda:Stream")
def moe_dispatch():
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = None  # kept on the class: an earlier model's would be used again
    config = tiny_gpt.gpt_config(num_moe_experts=2, moe_token_dispatcher_type="alltoall", moe_ffn_hidden_size=16)
    tiny_gpt.gpt_model(config)(**tiny_gpt.batch()).mean().backward()


@scenario("megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu", num_ranks=2)
def expert_parallel_dispatch():
    moe_dispatch()


@scenario("torch.cuda:synchronize")
def timers():
    timer = Timers(log_level=0, log_option="max")("step", log_level=0)
    timer.start(barrier=True)
    timer.stop(barrier=True)
    assert timer.elapsed(reset=True) > 0


@scenario("megatron.core.transformer.utils:get_default_causal_mask")
def causal_mask():
    assert get_default_causal_mask(3).tolist() == [[False, True, True], [False, False, True], [False, False, False]]


@scenario("megatron.core.transformer.utils:get_sliding_window_causal_mask")
def sliding_window_mask():
    mask = get_sliding_window_causal_mask(3, 3, (1, 0))
    assert mask.tolist() == [[False, True, True], [False, False, True], [True, False, False]]


@scenario("megatron.core.utils:local_multi_tensor_l2_norm")
def l2_norm():
    norm, _ = local_multi_tensor_l2_norm(None, None, [[torch.tensor([3.0]), torch.tensor([4.0])]], False)
    assert norm.item() == 5.0


@scenario("megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_without_interleaving", num_ranks=2)
def pipeline():
    losses, _, _ = tiny_gpt.train(tiny_gpt.gpt_config(), 2)
    assert len(losses) == (2 if parallel_state.is_pipeline_last_stage() else 0)


@scenario("megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_with_interleaving", num_ranks=2)
def interleaved_pipeline():
    tiny_gpt.train(tiny_gpt.gpt_config(num_layers=4), 2)


def save_and_load(algorithm: str) -> None:
    """Save a replicated tensor; then each rank reads a part of the checkpoint, and they exchange."""

    def state(value: float) -> dict:
        return {
            key: ShardedTensor.from_rank_offsets(key, torch.full((3,), value), replica_id=process_groups.rank())
            for key in ("a", "b", "c")  # an odd number: one rank has nothing to send in the last round
        }

    folder = process_groups.broadcast_object(tempfile.mkdtemp())
    dist_checkpointing.save(state(5.0), folder)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), None, exchange_algo=algorithm)
    loaded = dist_checkpointing.load(state(0.0), folder, strategy)
    assert all(tensor.tolist() == [5.0, 5.0, 5.0] for tensor in loaded.values())


@scenario("megatron.core.dist_checkpointing.exchange_utils:_get_empty_tensor_for_exchange", num_ranks=2)
def exchange_by_broadcast():
    save_and_load("broadcast")


@scenario(
    "megatron.core.dist_checkpointing.exchange_utils:exchange_loaded_tensors_gather_rounds",
    "torch.distributed:all_gather",
    num_ranks=2,
)
def exchange_in_rounds():
    save_and_load("gather_rounds")


@scenario(cpu._OPTIMIZER_STATE, cpu._SET_OPTIMIZER_STATE)
def resuming():
    _, chunks, optimizer = tiny_gpt.train(tiny_gpt.gpt_config(), 2)
    _, new_chunks, new_optimizer = tiny_gpt.train(tiny_gpt.gpt_config(), 0)

    def state(chunks, optimizer, is_loading: bool) -> dict:
        model = chunks[0].module.sharded_state_dict()
        metadata = {"distrib_optim_sharding_type": "dp_reshardable"}
        return {"model": model, "optimizer": optimizer.sharded_state_dict(model, is_loading, metadata=metadata)}

    folder = tempfile.mkdtemp()
    dist_checkpointing.save(state(chunks, optimizer, False), folder)
    loaded = dist_checkpointing.load(state(new_chunks, new_optimizer, True), folder)
    new_chunks[0].module.load_state_dict(loaded["model"])
    new_optimizer.load_state_dict(loaded["optimizer"])
    for _ in range(3):
        assert tiny_gpt.step(new_chunks, new_optimizer) == tiny_gpt.step(chunks, optimizer)


@scenario("megatron.core.dist_checkpointing.strategies.state_dict_saver:verify_global_md_reuse")
def reusing_save_plans():
    plan = SavePlan([])
    assert verify_global_md_reuse([plan], plan, 0, _DistWrapper(None, True, 0))


@scenario(
    "megatron.core.ssm.gated_delta_net.common:HAVE_FLA",
    "megatron.core.ssm.gated_delta_net.common:l2norm",
    "megatron.core.ssm.gated_delta_net.gdn:causal_conv1d",
    "megatron.core.ssm.gated_delta_net.gdn:chunk_gated_delta_rule",
)
def gated_delta_net():
    forward_pass("qwen3.5")


@scenario("megatron.core.transformer.moe.moe_layer:HAVE_TE", "megatron.core.transformer.moe.moe_layer:TELinear")
def latent_experts():
    forward_pass("nemotron-3-latent")


@scenario(*(path for path, _ in mamba.REPLACEMENTS))
def mamba_layers():
    forward_pass("mamba2")


def forward_pass(name: str) -> None:
    bridge = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())
    model = bridge.to_megatron_model(load_weights=False, wrap_with_ddp=False)
    assert full_logits(model, torch.zeros(1, 5, dtype=torch.long)).isfinite().all()


LAYOUTS = {pipeline: {"pp": 2}, interleaved_pipeline: {"pp": 2, "vpp": 2}, expert_parallel_dispatch: {"ep": 2}}


@pytest.mark.parametrize("path", [*dict(cpu.REPLACEMENTS), *cpu.LITERAL_DEVICE])
def test_it_is_needed(path):
    function, num_ranks = SCENARIOS[path]
    layout = LAYOUTS.get(function, {})
    run_ranks(function, num_ranks, **layout)

    def without():
        owner, name = cpu._resolve(path)
        if path in cpu.LITERAL_DEVICE:
            inspect.unwrap(getattr(owner, name)).__code__ = cpu._originals[path]
        else:
            setattr(owner, name, cpu._originals[path])
        function()

    with pytest.raises(RankFailure, match="failed:"):
        run_ranks(without, num_ranks, **layout)
