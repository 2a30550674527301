"""The import path of clients for live Megatron checkpoints, and process groups for scripts of one rank."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.bridge.models.live_checkpoint import (
    load_megatron_model,
    load_megatron_weights,
    load_model_config,
    save_megatron_model,
)

__all__ = [
    "load_megatron_model",
    "load_megatron_weights",
    "load_model_config",
    "save_megatron_model",
    "temporary_distributed_context",
]


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
