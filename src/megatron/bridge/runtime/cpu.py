"""Sends megatron-core's CUDA requests to the CPU. Entered through `megatron.bridge.runtime.enter()`, never on import.

Four means do it, none of which costs anything per torch operation:

- `REPLACEMENTS`: attributes of torch and megatron-core that are given a CPU version;
- `LITERAL_DEVICE`: megatron-core functions with the device "cuda" written in their body, which becomes "cpu";
- functions that megatron-core hands to `torch.compile` run as they are written;
- `QUIET_WARNINGS` and `QUIET_LOGS`: messages that tell nothing on a machine without CUDA.

The tables were made for megatron-core 0.19.2. A name that another version lacks is an error, not a silent gap.
"""

import importlib
import inspect
import logging
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import torch

from megatron.bridge.errors import BridgeError
from megatron.bridge.runtime import gated_delta, gloo, mamba
from megatron.bridge.runtime.replicated_linear import ReplicatedLinear

if TYPE_CHECKING:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

CPU = torch.device("cpu")
_OUT_OF_DATE = (
    "The tables in runtime/cpu.py were made for megatron-core 0.19: "
    "install megatron-core>=0.19,<0.20, or bring them up to date."
)


class _Stream:
    """A stream, or an event, of a device that runs everything in order, so that there is never anything to wait for."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def wait_stream(self, stream: "_Stream") -> None:
        pass

    def record_event(self) -> "_Stream":
        return self

    def synchronize(self) -> None:
        pass


_STREAM = _Stream()
_OPTIMIZER_STATE = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict"
_SET_OPTIMIZER_STATE = (
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer._set_main_param_and_optimizer_states"
)
_TENSOR_TYPE = torch.Tensor.type


def _tensor_cuda(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    return self


def _tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> str | torch.Tensor:
    """`Tensor.type`, but it tells megatron-core, which compares the name, that a float tensor lives on CUDA."""
    result: str | torch.Tensor = _TENSOR_TYPE(self, *args, **kwargs)
    caller = sys._getframe(1).f_globals.get("__name__", "")
    if isinstance(result, str) and not (args or kwargs) and caller.startswith("megatron.core."):
        return result.replace("torch.", "torch.cuda.", 1)
    return result


def _on_host(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


def _optimizer_state(self: "DistributedOptimizer") -> object:
    """`DistributedOptimizer.state_dict`, which needs AdamW's state: makes what AdamW itself makes at its first step."""
    for group in self.optimizer.param_groups:
        for parameter in group["params"]:
            if not self.optimizer.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
    return _originals[_OPTIMIZER_STATE](self)


def _set_optimizer_state(
    self: "DistributedOptimizer", model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
) -> None:
    """`DistributedOptimizer._set_main_param_and_optimizer_states` for torch's AdamW, which has a `step` per parameter.

    megatron-core has just put one tensor there for all parameters, so that each would add 1 to it at every step.
    """
    group, index = self.model_param_group_index_map[model_param]
    state = self.optimizer.state[self.optimizer.param_groups[group]["params"][index]]
    state["step"] = state["step"].clone()
    with torch.no_grad():  # in fp32, the main parameter is a view of the model's parameter
        _originals[_SET_OPTIMIZER_STATE](self, model_param, {**tensors, "step": state["step"]})


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _set_rng_state(state: torch.Tensor, device: object = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


def _get_rng_state(device: object = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


REPLACEMENTS: tuple[tuple[str, object], ...] = (
    # Where most modules put their tensors: tensor_parallel/mappings.py, transformer/moe/router.py, timers.py, ...
    ("torch.cuda:current_device", lambda: CPU),
    # tensor_parallel/data.py, optimizer/grad_scaler.py, dist_checkpointing/exchange_utils.py
    ("torch:Tensor.cuda", _tensor_cuda),
    # optimizer/optimizer.py, distrib_optimizer.py and clip_grads.py compare the result with "torch.cuda.FloatTensor"
    ("torch:Tensor.type", _tensor_type),
    # tensor_parallel/random.py: CudaRNGStatesTracker.add
    ("torch.cuda:get_rng_state", _get_rng_state),
    ("torch.cuda:manual_seed", torch.default_generator.manual_seed),
    # tensor_parallel/random.py: CudaRNGStatesTracker.fork, CheckpointFunction
    ("megatron.core.tensor_parallel.random:_get_cuda_rng_state", _get_rng_state),
    ("megatron.core.tensor_parallel.random:_set_cuda_rng_state", _set_rng_state),
    # transformer/moe/token_dispatcher.py, transformer/moe/shared_experts.py, distributed/distributed_data_parallel.py
    ("torch.cuda:Stream", _Stream),
    # The same, and distributed/param_and_grad_buffer.py
    ("torch.cuda:current_stream", lambda: _STREAM),
    # optimizer/distrib_optimizer.py: sharded_state_dict before the first step, which is how a run is resumed
    (_OPTIMIZER_STATE, _optimizer_state),
    # optimizer/distrib_optimizer.py: load_state_dict, which knows only the state of fused Adam
    (_SET_OPTIMIZER_STATE, _set_optimizer_state),
    # transformer/moe/token_dispatcher.py: all_to_all_single takes split sizes as a numpy array, not as a tensor
    ("megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu", _on_host),
    # transformer/moe/moe_layer.py: the projections around latent experts are Transformer Engine's
    ("megatron.core.transformer.moe.moe_layer:HAVE_TE", True),
    ("megatron.core.transformer.moe.moe_layer:TELinear", ReplicatedLinear),
    # tensor_parallel/mappings.py, dist_checkpointing/exchange_utils.py
    ("torch.distributed:all_gather", gloo.all_gather),
    # ssm/gated_delta_net: functions of flash-linear-attention, which need CUDA
    ("megatron.core.ssm.gated_delta_net.common:HAVE_FLA", True),
    ("megatron.core.ssm.gated_delta_net.common:l2norm", gated_delta.l2norm),
    ("megatron.core.ssm.gated_delta_net.gdn:causal_conv1d", gated_delta.causal_conv1d),
    ("megatron.core.ssm.gated_delta_net.gdn:chunk_gated_delta_rule", gated_delta.chunk_gated_delta_rule),
    # timers.py, pipeline_parallel/p2p_communication.py, dist_checkpointing/strategies/async_utils.py
    ("torch.cuda:synchronize", _nothing),
    # ssm/mamba_mixer.py
    *mamba.REPLACEMENTS,
)

LITERAL_DEVICE = (
    "megatron.core.dist_checkpointing.exchange_utils:_get_empty_tensor_for_exchange",
    "megatron.core.dist_checkpointing.exchange_utils:exchange_loaded_tensors_gather_rounds",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver:verify_global_md_reuse",
    "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",
    "megatron.core.optimizer.clip_grads:count_zeros_fp32",
    "megatron.core.optimizer.clip_grads:get_grad_norm_fp32",
    "megatron.core.optimizer.grad_scaler:DynamicGradScaler.__init__",
    "megatron.core.optimizer.grad_scaler:MegatronGradScaler.__init__",
    "megatron.core.optimizer.optimizer:FP32Optimizer.__init__",
    "megatron.core.optimizer.optimizer:MegatronOptimizer.has_grad_norm_group",
    "megatron.core.optimizer.optimizer:MixedPrecisionOptimizer.__init__",
    "megatron.core.pipeline_parallel.schedules:forward_backward_no_pipelining",
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_with_interleaving",
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_without_interleaving",
    "megatron.core.tensor_parallel.data:_build_key_size_numel_dictionaries",
    "megatron.core.transformer.utils:get_default_causal_mask",
    "megatron.core.transformer.utils:get_sliding_window_causal_mask",
    "megatron.core.utils:local_multi_tensor_l2_norm",
)


# Messages that tell nothing on a machine without CUDA: the module or logger that sends them, and how they start.
QUIET_WARNINGS = (
    (r"megatron\.core\.", "Transformer Engine and Apex are not installed"),
    (r"megatron\.core\.", "Apex is not installed"),
    (r"megatron\.core\.hyper_comm_grid", "absl.logging is not installed"),
    (r"megatron\.core\.inference\.contexts", "The following imports from `dynamic_context.py` will be removed"),
    (r"megatron\.core\.models\.mimo", "MimoModelConfig is experimental"),
    (r"megatron\.core\.transformer\.transformer_config", "full scope is deprecated. Use empty cuda_graph_modules"),
    (
        r"megatron\.core\.tensor_parallel\.layers",
        "When using .* set the environment variable CUDA_DEVICE_MAX_CONNECTIONS",
    ),
)
QUIET_LOGS = (
    # The CUDA toolkit is installed, the driver is not.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
    # Here the tracker forks the CPU's generator, which is meant to change.
    ("megatron.core.tensor_parallel.random", "CPU RNG state changed within GPU RNG context"),
    # The writer that is not deprecated is in a CUDA-only package.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCore's async save is deprecated"),
)

# What was replaced, by "module:attribute". Filled once, by `redirect`.
_originals: dict[str, Any] = {}


def redirect() -> None:
    """Applies the tables of this module, once.

    Raises:
        BridgeError: this megatron-core lacks a name that is in the tables.
    """
    if _originals:
        return
    _silence()
    # Everything is looked up before the first change, so that an error leaves nothing half done.
    functions = {path: inspect.unwrap(getattr(*_resolve(path))) for path in LITERAL_DEVICE}
    codes = {path: _on_cpu(function.__code__, path) for path, function in functions.items()}
    places = {path: _resolve(path) for path, _ in REPLACEMENTS}
    for path, function in functions.items():
        _originals[path] = function.__code__
        function.__code__ = codes[path]
    for path, value in REPLACEMENTS:
        _originals[path] = getattr(*places[path])
        setattr(*places[path], value)
    _run_eagerly()


def _resolve(path: str) -> tuple[Any, str]:
    """The object that has the attribute `module:name` or `module:Class.name`, and the attribute's name."""
    module, _, attributes = path.partition(":")
    *owners, name = attributes.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part, None)
    if not hasattr(owner, name):
        raise BridgeError(f"CPU runtime: {path} does not exist in the installed version. {_OUT_OF_DATE}")
    return owner, name


def _on_cpu(code: types.CodeType, path: str) -> types.CodeType:
    """The same code, with the constant "cuda" replaced by "cpu"."""
    if "cuda" not in code.co_consts:
        raise BridgeError(f'CPU runtime: {path} does not name the device "cuda". {_OUT_OF_DATE}')
    return code.replace(co_consts=tuple("cpu" if const == "cuda" else const for const in code.co_consts))


def _run_eagerly() -> None:
    """Undoes megatron-core's `torch.compile`, which on the CPU needs a C++ compiler, and seconds for each function.

    It is used by transformer/torch_norm.py, attention.py and moe/router.py, activations.py and fusions/.
    """
    from megatron.core import jit

    jit.disable_jit_fuser()  # for modules that have yet to be imported
    modules = [module for name, module in sys.modules.items() if name.startswith("megatron.core.")]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    for owner in (*modules, *classes):
        for name, value in list(vars(owner).items()):
            original = getattr(value, "_torchdynamo_orig_callable", None)
            if original is not None:
                setattr(owner, name, original)


class _Mute(logging.Filter):
    """Drops the log records that start with a given message."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.message)


def _silence() -> None:
    for module, message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=module)
    for logger, message in QUIET_LOGS:
        logging.getLogger(logger).addFilter(_Mute(message))
