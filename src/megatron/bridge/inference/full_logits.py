"""One forward pass of a whole, perhaps sharded, model: the logits, complete, on every rank."""

from collections.abc import Callable, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer import MegatronModule

from megatron.bridge.models.model_building import config_of, unwrap_model
from megatron.bridge.transport import collectives


@torch.no_grad()
def full_logits(model: Sequence[MegatronModule], tokens: torch.Tensor) -> torch.Tensor:
    """Logits `[B, S, V]` of `tokens` `[B, S]`, without vocabulary padding, the same on every rank (collective).

    Args:
        model: the list of chunks, bare or wrapped, in any mode; their mode is kept.
        tokens: the same on every rank. With sequence parallelism, S must be a multiple of the tensor-parallel size.
    """
    chunks = list(model)
    config = config_of(unwrap_model(chunks)[0])
    modes = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    batch_size, seq_length = tokens.shape
    position_ids = torch.arange(seq_length, device=tokens.device).expand(batch_size, -1)

    def forward_step(_: object, chunk: MegatronModule) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
        return chunk(tokens, position_ids, None), lambda logits, non_loss_data=True: logits

    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[None] * len(chunks) if len(chunks) > 1 else None,
        model=chunks,
        num_microbatches=config.pipeline_model_parallel_size if len(chunks) > 1 else 1,
        seq_length=seq_length,
        micro_batch_size=batch_size,
        forward_only=True,
        collect_non_loss_data=True,
    )
    for chunk, mode in zip(chunks, modes, strict=True):
        chunk.train(mode)
    logits: torch.Tensor | None = gather_from_tensor_model_parallel_region(outputs[0]) if outputs else None
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        shape = (batch_size, seq_length, config.padded_vocab_size)
        logits = collectives.broadcast_from_last_stage(logits, shape, tokens.device)
    assert logits is not None
    return logits.float()[..., : config.vocab_size]
