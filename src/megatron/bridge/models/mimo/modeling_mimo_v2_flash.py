"""MiMo-V2-Flash's attention: values have a size of their own and are scaled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.attention import CoreAttentionInterface, SelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.typed_torch import apply_module

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.layer_rope import LayerRopeSelfAttention
from megatron.bridge.models.transformer.layer_specs import attention_spec, attention_submodules


@dataclass
class MiMoV2FlashProvider(GPTModelProvider):
    """A provider whose values have a size of their own and are multiplied by a constant.

    Attributes:
        v_head_dim: the dimensions of a value; queries and keys have `kv_channels`.
        value_multiplier: the factor of the values.
    """

    v_head_dim: int = 0
    value_multiplier: float = 1.0

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        attention_spec(spec).module = MiMoV2FlashSelfAttention
        parts = attention_submodules(spec)
        assert isinstance(parts, SelfAttentionSubmodules)
        parts.linear_qkv = partial(_linear_qkv, parts.linear_qkv)
        parts.linear_proj = partial(_linear_proj, parts.linear_proj)
        core_attention: Callable[..., CoreAttentionInterface] = parts.core_attention
        parts.core_attention = partial(core_attention, k_channels=self.kv_channels, v_channels=self.v_head_dim)


class MiMoV2FlashSelfAttention(LayerRopeSelfAttention):
    """Attention with the heads of its kind of layer, and values that are narrower than keys."""

    config: MiMoV2FlashProvider

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.val_hidden_size = self.config.v_head_dim

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Like the base class: `[S, B, A, D]`, `[S, B, G, D]` and `[S, B, G, v_head_dim]`."""
        mixed, _ = apply_module(self.linear_qkv)(hidden_states)
        num_groups, head_dim = self.num_query_groups_per_partition, self.key_hidden_size
        num_queries = self.num_attention_heads_per_partition // num_groups * head_dim
        groups = mixed.unflatten(-1, (num_groups, -1))
        query, key, value = groups.split([num_queries, head_dim, self.val_hidden_size], dim=-1)
        query = query.unflatten(-1, (-1, head_dim)).flatten(2, 3)
        return query, key, value * self.config.value_multiplier


# megatron-core passes the sizes that these layers would have if values were as wide as keys.


def _linear_qkv[LinearT](
    linear: Callable[..., LinearT], input_size: int, output_size: int, *, config: MiMoV2FlashProvider, **kwargs: Any
) -> LinearT:
    assert config.num_query_groups is not None and config.kv_channels is not None
    num_fewer = config.num_query_groups * (config.kv_channels - config.v_head_dim)
    return linear(input_size, output_size - num_fewer, config=config, **kwargs)


def _linear_proj[LinearT](
    linear: Callable[..., LinearT], input_size: int, output_size: int, *, config: MiMoV2FlashProvider, **kwargs: Any
) -> LinearT:
    return linear(config.num_attention_heads * config.v_head_dim, output_size, config=config, **kwargs)
