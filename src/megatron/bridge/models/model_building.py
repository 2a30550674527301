"""The steps from a provider to model chunks that are ready for use: build, move, wrap."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Literal, cast

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module, MegatronModule
from torch import nn

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.models.placement import FLOAT32_WEIGHTS
from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.runtime import capabilities

# Wraps a chunk: a class such as megatron-core's Float16Module, or the name of that one.
type Wrapper = Callable[[DecoderConfig, MegatronModule], MegatronModule] | Literal["Float16Module"]


def unwrap_model(model: nn.Module | Sequence[nn.Module]) -> list[MegatronModule]:
    """The bare chunks of a model, or of a list of chunks, whatever wraps them (DDP, Float16Module)."""
    chunks = []
    for chunk in model if isinstance(model, Sequence) else (model,):
        while not hasattr(chunk, "sharded_state_dict") or isinstance(chunk, DistributedDataParallel | Float16Module):
            chunk = chunk.get_submodule("module")
        chunks.append(cast(MegatronModule, chunk))
    return chunks


def config_of(chunk: MegatronModule) -> DecoderConfig:
    """The config of a chunk that a provider built: the provider itself."""
    return cast(DecoderConfig, chunk.config)


def check_parallel_sizes(provider: DecoderConfig) -> None:
    """Raises `ParallelLayoutError` if the process groups in use were made for sizes other than the provider's."""
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


def build_chunks(config: DecoderConfig, provide: Callable[..., MegatronModule]) -> list[MegatronModule]:
    """Builds one chunk per virtual pipeline stage, on the device (or the meta device) that the config asks for.

    Args:
        provide: builds the chunk of a `vp_stage`.
    """
    num_stages = config.virtual_pipeline_model_parallel_size
    stages: Iterable[int | None] = [None] if num_stages is None else range(num_stages)
    if num_stages is not None:
        # Process groups do not depend on it, but megatron-core also asks its parallel state.
        parallel_state.set_virtual_pipeline_model_parallel_world_size(num_stages)
    chunks = []
    with torch.device("meta") if config.init_model_with_meta_device else nullcontext():
        for stage in stages:
            chunk = provide(vp_stage=stage)
            setattr(chunk, "model_type", ModelType.encoder_or_decoder)  # noqa: B010 (not an attribute of MegatronModule)
            for parameter in chunk.parameters():
                tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
            chunks.append(chunk)
    return chunks


def to_device(config: DecoderConfig, chunks: list[MegatronModule]) -> list[MegatronModule]:
    """Moves the chunks to this rank's GPU, if there is one."""
    if capabilities.has_cuda() and not config.init_model_with_meta_device:
        for chunk in chunks:
            chunk.cuda(torch.cuda.current_device())
    return chunks


def wrap_mixed_precision(
    config: DecoderConfig, chunks: list[MegatronModule], wrapper: "Wrapper | None"
) -> list[MegatronModule]:
    """Wraps half-precision chunks so that their inputs are cast and their outputs are float32.

    `FLOAT32_WEIGHTS` stay in float32, with the values that they were loaded with.

    Args:
        wrapper: the class that wraps a chunk, or "Float16Module" for megatron-core's; `None` for no wrapper.
    """
    if wrapper is None or not (config.fp16 or config.bf16):
        return chunks
    wrapper_class = Float16Module if wrapper == "Float16Module" else wrapper
    wrapped = []
    for chunk in chunks:
        tensors = [*chunk.named_parameters(), *chunk.named_buffers()]
        kept = [(name, tensor.data) for name, tensor in tensors if name.endswith(FLOAT32_WEIGHTS)]
        wrapped.append(wrapper_class(config, chunk))
        now = dict([*chunk.named_parameters(), *chunk.named_buffers()])
        for name, data in kept:
            now[name].data = data
    return wrapped


def wrap_ddp(
    config: DecoderConfig,
    chunks: list[MegatronModule],
    ddp_config: DistributedDataParallelConfig | None,
    data_parallel_random_init: bool,
    overlap_param_gather_with_optimizer_step: bool,
    pg_collection: ProcessGroupCollection | None = None,
) -> list[MegatronModule]:
    """Wraps each chunk in megatron-core's DistributedDataParallel."""
    ddp_config = ddp_config or DistributedDataParallelConfig()
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=ddp_config,
            module=chunk,
            # Later chunks overlap with the backward pass of earlier ones, and buckets would delay communication.
            disable_bucketing=index > 0 or overlap_param_gather_with_optimizer_step,
            pg_collection=pg_collection,
        )
        for index, chunk in enumerate(chunks)
    ]
    if data_parallel_random_init:
        for chunk in wrapped:
            chunk.broadcast_params()
    return [*wrapped]
