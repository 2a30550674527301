"""Megatron checkpoints of a live model: saved and loaded by megatron-core, with the provider beside the weights."""

import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.run_config import read_provider, write_run_config
from megatron.bridge.transport.checkpoint_folder import TRACKER_NAME, iteration_folder

if TYPE_CHECKING:
    from megatron.core.transformer import MegatronModule

    from megatron.bridge.models.model_provider import ModelProviderMixin


def save_megatron_model(
    model: "Sequence[MegatronModule]", path: str | Path, hf_model_id: str | None = None, iteration: int = 0
) -> Path:
    """Saves a live model's weights as a torch_dist checkpoint (collective); returns the iteration's folder.

    Args:
        model: the list of chunks, bare or wrapped.
        path: the checkpoint folder.
        hf_model_id: hub id or folder that the model came from.
    """
    from megatron.core import dist_checkpointing

    from megatron.bridge.models.model_building import config_of, unwrap_model
    from megatron.bridge.transport import process_groups

    chunks = unwrap_model(model)
    folder = Path(path) / f"iter_{iteration:07d}"
    if process_groups.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    process_groups.barrier()
    state = {name: chunk.sharded_state_dict() for name, chunk in _named(chunks).items()}
    with _writing_in_this_process():
        dist_checkpointing.save(state, str(folder))
    if process_groups.rank() == 0:
        write_run_config(folder, config_of(chunks[0]), hf_model_id)
        (Path(path) / TRACKER_NAME).write_text(str(iteration))
    process_groups.barrier()
    return folder


@contextmanager
def _writing_in_this_process() -> Iterator[None]:
    """Gives megatron-core's writer a queue of this process for its results.

    Its own belongs to a server process, even when the writer runs here. Starting that process runs the user's script
    again, which fails if the script has no `if __name__ == "__main__"`.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    before = filesystem_async._results_queue
    filesystem_async._results_queue = queue.Queue()  # type: ignore[assignment]  # of another module
    try:
        yield
    finally:
        filesystem_async._results_queue = before


def load_megatron_weights(model: "Sequence[MegatronModule]", path: str | Path) -> None:
    """Loads a torch_dist checkpoint into a live model with megatron-core's own loader (collective).

    Raises:
        CheckpointError: the checkpoint lacks a weight of the model.
    """
    from megatron.core import dist_checkpointing

    from megatron.bridge.models.model_building import config_of, unwrap_model
    from megatron.bridge.models.placement import read_entries
    from megatron.bridge.models.stored_places import StoredPlaces
    from megatron.bridge.transport.torch_dist import TorchDistReader

    chunks = _named(unwrap_model(model))
    folder = iteration_folder(path)
    reader = TorchDistReader(folder)
    places = StoredPlaces(reader.tensors, config_of(unwrap_model(model)[0]))
    request = {}
    lost: set[str] = set()
    for chunk_name, chunk in chunks.items():
        state = chunk.sharded_state_dict()
        places.retarget(state, getattr(chunk, "letters_per_layer", None) or 1)
        objects = [name for name, entry in state.items() if _is_object(entry)]
        # Extra states are Transformer Engine's: a checkpoint made without it has none, and the model's own are right.
        for name in objects:
            if state[name].unique_key not in reader.objects:
                del state[name]
        if config_of(chunk).unpadded_query_groups is not None:
            _allow_other_padding(state)
        # One parameter may be several entries of a checkpoint: the projection of a gated delta net is.
        wanted_keys = {shard.key for parameter in read_entries(chunk, state) for shard in parameter.shards}
        lost |= wanted_keys - reader.tensors.keys()
        request[chunk_name] = state
    if lost:
        raise CheckpointError(f"{folder}: lacks weights of the model: {', '.join(sorted(lost))}")
    # megatron-core's loader would run whatever the entries that are not tensors name.
    wanted = {entry.unique_key for state in request.values() for entry in state.values() if _is_object(entry)}
    reader.check_objects(key for key in reader.objects if key in wanted or key.startswith("common_state"))
    loaded: Any = dist_checkpointing.load(request, str(folder))
    for chunk_name, chunk in chunks.items():
        chunk.load_state_dict(loaded[chunk_name], strict=False)


def _allow_other_padding(state: "Mapping[str, Any]") -> None:
    """Lets attention weights be loaded from a checkpoint with more or fewer query groups of zeros than the model."""
    for name, entry in state.items():
        if re.search(r"\.self_attention\.linear_(qkv\.(weight|bias)|proj\.weight)$", name):
            entry.allow_shape_mismatch = True


def _named(chunks: "Sequence[MegatronModule]") -> "dict[str, MegatronModule]":
    """The chunks by their names in a checkpoint's state dict, as Megatron-LM gives them."""
    return {"model": chunks[0]} if len(chunks) == 1 else {f"model{index}": chunk for index, chunk in enumerate(chunks)}


def _is_object(entry: object) -> bool:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return isinstance(entry, ShardedObject)


def load_model_config(path: str | Path) -> "tuple[ModelProviderMixin[MegatronModule], None]":
    """The provider of a checkpoint, and `None` in the place of Megatron-LM's arguments."""
    return read_provider(iteration_folder(path)), None


def load_megatron_model(
    path: str | Path,
    mp_overrides: Mapping[str, Any] | None = None,
    provider: "ModelProviderMixin[MegatronModule] | None" = None,
) -> "list[MegatronModule]":
    """Builds the model of a checkpoint over this run's ranks and loads its weights.

    Args:
        path: the checkpoint folder.
        mp_overrides: parallel sizes (or other provider fields) to use instead of the defaults (1).
        provider: use this one instead of the checkpoint's.
    """
    from megatron.bridge import runtime

    runtime.enter()
    provider = load_model_config(path)[0] if provider is None else provider
    provider.reset_layout()
    for name, value in (mp_overrides or {}).items():
        if not hasattr(provider, name):
            raise AttributeError(f"{type(provider).__name__} has no field {name!r}")
        setattr(provider, name, value)
    provider.perform_initialization = False
    chunks = provider.provide_distributed_model(wrap_with_ddp=False)
    load_megatron_weights(chunks, path)
    return chunks
