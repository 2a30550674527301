"""Where a checkpoint holds the weights of a decoder, whichever model class it was saved from.

megatron-core saves a GPTModel's layers stacked on a layer axis or, if they differ or it is told to, one by one; those
of a HybridModel one by one, of which each may be two. So one weight has four places, and every model reads all four.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.models.placement import Parameter, Shard
from megatron.bridge.models.transformer.gpt_names import gpt_name

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig
    from megatron.bridge.transport.boxes import Shape

_STACKED = re.compile(r"((?:^|\.)decoder\.layers)\.(?!\d)")
_NUMBERED = re.compile(r"(?:^|\.)decoder\.layers\.(\d+)\.")
_NUMBER = re.compile(r"(?<=decoder\.layers\.)\d+")


def _are_split(keys: Iterable[str], num_layers: int) -> bool:
    """Whether layers stand one by one and each is two, of which one is attention and the other an MLP."""
    halves: dict[int, set[bool]] = {}
    for key in keys:
        if found := _NUMBERED.search(key):
            is_mlp = key[found.end() :].startswith(("mlp.", "pre_mlp_layernorm."))
            halves.setdefault(int(found[1]), set()).add(is_mlp)
    return max(halves, default=0) >= num_layers and all(len(kinds) == 1 for kinds in halves.values())


class Place(NamedTuple):
    """The key of a weight, and where it stands on the axes that are stacked before its own."""

    key: str
    shape: "Shape"
    offset: "Shape"


class StoredPlaces:
    """The places of a checkpoint's weights, by the names that they have in a GPTModel, numbers of layers included.

    Args:
        keys: of the checkpoint's tensors.
        config: of the decoder, whose `num_layers` are HF's.
    """

    def __init__(self, keys: Iterable[str], config: "DecoderConfig") -> None:
        self.places: dict[str, Place] = {}
        keys = list(keys)
        letters = 2 if _are_split(keys, config.num_layers) else 1
        for key in keys if not config.has_own_pattern else ():  # whose checkpoints have one form
            if _STACKED.search(key):
                for layer in range(config.num_layers):
                    name = _STACKED.sub(rf"\1.{layer}.", key)
                    self.places[name] = Place(key, (config.num_layers,), (layer,))
            else:
                self.places[gpt_name(key, letters)] = Place(key, (), ())

    def located(self, parameter: Parameter) -> Parameter:
        """A parameter with shards that stand where the checkpoint has them."""
        found = _NUMBERED.search(parameter.name)
        layer = int(found[1]) if found else 0
        return replace(parameter, shards=[self._located(shard, layer) for shard in parameter.shards])

    def _located(self, shard: Shard, layer: int) -> Shard:
        num_stacked = len(shard.global_shape) - len(shard.box)
        own = Place(shard.key, shard.global_shape[:num_stacked], shard.global_offset[:num_stacked])
        found = self._place(own, layer)
        shape, offset = shard.global_shape[num_stacked:], shard.global_offset[num_stacked:]
        return replace(
            shard, key=found.key, global_shape=(*found.shape, *shape), global_offset=(*found.offset, *offset)
        )

    def _place(self, own: Place, layer: int) -> Place:
        """Where the checkpoint has what a model would save at a place; that place if it has it nowhere."""
        key, shape, offset = own
        if _STACKED.search(key):
            name, shape, offset = _STACKED.sub(rf"\1.{layer}.", key), shape[1:], offset[1:]
        else:
            name = _NUMBER.sub(str(layer), gpt_name(key))
        found = self.places.get(name)
        return own if found is None else Place(found.key, (*found.shape, *shape), (*found.offset, *offset))

    def retarget(self, state: dict[str, Any], letters_per_layer: int) -> None:
        """Makes the entries of a model's `sharded_state_dict()` ask for what the checkpoint has, where it has it.

        Args:
            letters_per_layer: of the model, see `gpt_name`.
        """
        for name, entry in state.items():
            state[name] = self._retargeted(letters_per_layer, entry)

    def _retargeted(self, letters: int, entry: Any) -> Any:
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

        if isinstance(entry, ShardedTensorFactory):
            return replace(entry, build_fn=partial(self._built, letters, entry.build_fn))
        if not isinstance(entry, ShardedTensor):
            return entry
        num_stacked = entry.prepend_axis_num
        own = Place(entry.key, entry.global_shape[:num_stacked], entry.global_offset[:num_stacked])
        number = _NUMBERED.search(entry.key)
        layer = int(number[1]) // letters if number else own.offset[0] if num_stacked else 0
        found = self._place(own, layer)
        return replace(
            entry,
            key=found.key,
            global_shape=(*found.shape, *entry.global_shape[num_stacked:]),
            global_offset=(*found.offset, *entry.global_offset[num_stacked:]),
            axis_fragmentations=(*found.shape, *(entry.axis_fragmentations or ())[num_stacked:]),
            prepend_axis_num=len(found.shape),
        )

    def _built(self, letters: int, build: Callable[..., Any], *args: Any) -> Any:
        parts = build(*args)
        if isinstance(parts, dict):
            return {name: self._retargeted(letters, part) for name, part in parts.items()}
        return [self._retargeted(letters, part) for part in parts]
