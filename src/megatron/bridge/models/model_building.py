"""The steps from a provider to a list of model chunks ready for use: build, move, wrap."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.enums import ModelType
from megatron.core.transformer.module import Float16Module, MegatronModule

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.runtime import capabilities

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig


def unwrap_model(model: Any) -> list[MegatronModule]:
    """The bare chunks of a model, or of a list of chunks, whatever wraps them (DDP, Float16Module)."""
    chunks = []
    for chunk in model if isinstance(model, list | tuple) else [model]:
        while not hasattr(chunk, "sharded_state_dict") or isinstance(chunk, DistributedDataParallel | Float16Module):
            chunk = chunk.module
        chunks.append(chunk)
    return chunks


def check_parallel_sizes(provider: "DecoderConfig") -> None:
    """Raises `ParallelLayoutError` if the process groups in use were made for other sizes than the provider's."""
    if not parallel_state.model_parallel_is_initialized():
        return
    sizes = {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
    }
    problems = [
        f"{name} is {getattr(provider, name)}, the process groups have {size}"
        for name, size in sizes.items()
        if getattr(provider, name) != size
    ]
    if problems:
        raise ParallelLayoutError(
            f"{type(provider).__name__}: {'; '.join(problems)}; set the provider's sizes before its first "
            "initialize_model_parallel(), or initialise again"
        )


def build_chunks(config: "DecoderConfig", provide: Callable[..., Any]) -> list[Any]:
    """One chunk per virtual pipeline stage, on the device (or the meta device) that the config asks for.

    Args:
        provide: builds the chunk of a `vp_stage`.
    """
    num_stages = config.virtual_pipeline_model_parallel_size
    stages: list[int | None] = [None] if num_stages is None else list(range(num_stages))
    chunks = []
    with torch.device("meta") if config.init_model_with_meta_device else nullcontext():
        for stage in stages:
            chunk = provide(vp_stage=stage)
            chunk.model_type = ModelType.encoder_or_decoder
            for parameter in chunk.parameters():
                tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
            chunks.append(chunk)
    return chunks


def to_device(config: "DecoderConfig", chunks: list[Any]) -> list[Any]:
    """Moves the chunks to this rank's GPU, if there is one."""
    if capabilities.has_cuda() and not config.init_model_with_meta_device:
        for chunk in chunks:
            chunk.cuda(torch.cuda.current_device())
    return chunks


def wrap_mixed_precision(config: "DecoderConfig", chunks: list[Any], wrapper: Any) -> list[Any]:
    """Wraps half-precision chunks so that inputs are cast and outputs are float32."""
    if wrapper is None or not (config.fp16 or config.bf16):
        return chunks
    wrapper_class = Float16Module if wrapper == "Float16Module" else wrapper
    return [wrapper_class(config, chunk) for chunk in chunks]


def wrap_ddp(
    config: "DecoderConfig",
    chunks: list[Any],
    ddp_config: DistributedDataParallelConfig | None,
    data_parallel_random_init: bool,
    overlap_param_gather_with_optimizer_step: bool,
) -> list[Any]:
    """Wraps each chunk in megatron-core's DistributedDataParallel."""
    ddp_config = ddp_config or DistributedDataParallelConfig()
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=ddp_config,
            module=chunk,
            # Later chunks overlap with the backward pass of earlier ones; bucketing them delays communication.
            disable_bucketing=index > 0 or overlap_param_gather_with_optimizer_step,
        )
        for index, chunk in enumerate(chunks)
    ]
    if data_parallel_random_init:
        for chunk in wrapped:
            chunk.broadcast_params()
    return wrapped
