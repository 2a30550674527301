"""The import path that clients use for checkpoints of live models, and process groups for scripts of one rank."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.bridge.models.live_checkpoint import load_megatron_model as load_megatron_model
from megatron.bridge.models.live_checkpoint import load_megatron_weights as load_megatron_weights
from megatron.bridge.models.live_checkpoint import load_model_config as load_model_config
from megatron.bridge.models.live_checkpoint import save_megatron_model as save_megatron_model


@contextmanager
def temporary_distributed_context(backend: str = "gloo") -> Iterator[None]:
    """Process groups for one rank, for as long as the block runs; those that exist already are left alone."""
    from megatron.bridge.transport import process_groups

    if process_groups.is_initialized():
        yield
        return
    process_groups.initialize()
    try:
        yield
    finally:
        process_groups.destroy()
