"""A tiny real megatron-core GPT (local spec, `TorchNorm`) and its training steps, for the tests of this folder."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron.bridge.runtime.norm import TorchNorm

VOCAB, SEQUENCE, BATCH = 64, 16, 2


def gpt_config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(
        **{
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 64,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
            "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
            "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
            "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
            "pipeline_dtype": torch.float32,
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            **changes,
        }
    )


def gpt_model(config: TransformerConfig, vp_stage: int | None = None, **changes: Any) -> GPTModel:
    layer = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, normalization="RMSNorm")
    layer.submodules.input_layernorm = TorchNorm
    layer.submodules.pre_mlp_layernorm = TorchNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    block = TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TorchNorm)
    return GPTModel(
        config,
        block,
        **{
            "vocab_size": VOCAB,
            "max_sequence_length": SEQUENCE,
            "position_embedding_type": "rope",
            "share_embeddings_and_output_weights": False,
            "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            "post_process": parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            "vp_stage": vp_stage,
            **changes,
        },
    )


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, VOCAB, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(SEQUENCE)[None].expand(BATCH, -1),
        "attention_mask": torch.triu(torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool), 1)[None, None],
        "labels": tokens.roll(-1, 1),
    }


def wrapped_chunks(config: TransformerConfig, distributed_optimizer: bool = True) -> list[DistributedDataParallel]:
    """This rank's model chunks, under data parallelism."""
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=distributed_optimizer)
    config.finalize_model_grads_func = finalize_model_grads
    num_chunks = config.virtual_pipeline_model_parallel_size
    stages = [None] if num_chunks is None else range(num_chunks)
    return [DistributedDataParallel(config, ddp_config, gpt_model(config, vp_stage=stage)) for stage in stages]


def train(config: TransformerConfig, num_steps: int) -> tuple[list[float], list[DistributedDataParallel], Any]:
    """Train on one batch (two microbatches); the losses (of the last stage; empty elsewhere), chunks and optimizer."""
    chunks = wrapped_chunks(config)
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=1e-2,
        clip_grad=1.0,
        use_distributed_optimizer=True,
        params_dtype=config.params_dtype,
        bf16=config.params_dtype == torch.bfloat16,
    )
    optimizer = get_megatron_optimizer(optimizer_config, chunks)
    config.grad_scale_func = optimizer.scale_loss
    losses = [step(chunks, optimizer) for _ in range(num_steps)]
    return [loss for loss in losses if loss is not None], chunks, optimizer


def forward_backward(chunks: list[DistributedDataParallel]) -> float | None:
    """Forward, backward and gradient reduction of two microbatches; the mean loss, on the last stage."""

    def forward_step(_, model):
        def loss_func(output):
            loss = output.float().mean()
            return loss, {"loss": loss.detach()}

        return model(**batch()), loss_func

    for chunk in chunks:
        chunk.zero_grad_buffer()
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[None] * len(chunks) if len(chunks) > 1 else None,
        model=chunks,
        num_microbatches=2,
        seq_length=SEQUENCE,
        micro_batch_size=BATCH,
        forward_only=False,
    )
    return sum(output["loss"].item() for output in outputs) / len(outputs) if outputs else None


def step(chunks: list[DistributedDataParallel], optimizer: Any) -> float | None:
    optimizer.zero_grad()
    loss = forward_backward(chunks)
    success, _, _ = optimizer.step()
    assert success
    return loss


def dropout_mask() -> torch.Tensor:
    """One draw of the model-parallel generator."""
    with get_cuda_rng_tracker().fork():
        return torch.nn.functional.dropout(torch.ones(64), 0.5)
