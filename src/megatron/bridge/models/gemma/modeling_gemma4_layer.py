"""Gemma 4's layers: attention by kind of layer, keys and values of earlier layers, and the further input of each layer.

S is the sequence length (S' on this rank with sequence parallelism), B the batch size, H the hidden size, G the number
of query groups on this rank, D the size of a head. The context is what layers hand on besides hidden states, a tensor
`[S', B, C]`: first the inputs of the layers to come, each of which takes its own off the front, then keys and values
that later layers use.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.typed_torch import apply_module

from megatron.bridge.models.gemma.modeling_gemma4_config import Gemma4Config
from megatron.bridge.models.gemma.modeling_gemma4_per_layer import PerLayerInput
from megatron.bridge.models.transformer.layer_rope import LayerRopeSelfAttention
from megatron.bridge.models.transformer.layer_specs import post_norm_builder


class Gemma4TransformerLayer(TransformerLayer):
    """A TransformerLayer that may read an input of its own, and whose output is multiplied by a stored constant.

    Attributes:
        hands_over_context: whether the context goes on as further columns of hidden states, as to the next stage.
    """

    config: Gemma4Config
    layer_scalar: torch.Tensor

    def __init__(self, config: Gemma4Config, submodules: TransformerLayerSubmodules, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, submodules, *args, **kwargs)
        self.register_buffer("layer_scalar", torch.ones(1, dtype=config.params_dtype))
        self.hands_over_context = False
        if config.hidden_size_per_layer_input:
            self.per_layer_input = PerLayerInput(config, post_norm_builder(submodules))

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, context: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new hidden states `[S', B, H]` and context."""
        config, attention = self.config, self.self_attention
        hidden_states, from_previous_stage = hidden_states.tensor_split([config.hidden_size], dim=-1)
        context = from_previous_stage if context is None else context
        own_input, context = context.tensor_split([config.hidden_size_per_layer_input], dim=-1)
        attention.kv = attention.kv_of_source(context)
        hidden_states, _ = super().forward(hidden_states, *args, **kwargs)
        context = attention.with_own_kv(context)
        if config.hidden_size_per_layer_input:
            hidden_states = self.per_layer_input(hidden_states, own_input)
        hidden_states = hidden_states * self.layer_scalar
        if self.hands_over_context:
            hidden_states = torch.cat([hidden_states, context], dim=-1)
        return hidden_states, context


class Gemma4SelfAttention(LayerRopeSelfAttention):
    """Attention with norms of q, k and v.

    The values may be the keys, and both may be those of an earlier layer. They are taken as they are before the rotary
    embedding, so that they go through it, and through the KV cache, in the usual way.

    Attributes:
        kv: keys and values, `[S, B, G, 2 * D]`, while the layer runs: those of an earlier layer, or its own for others.
    """

    config: Gemma4Config

    def __init__(
        self, config: Gemma4Config, submodules: SelfAttentionSubmodules, layer_number: int, *args: Any, **kwargs: Any
    ) -> None:
        kv_size = config.kv_size
        num_missing = 0
        self.kv: torch.Tensor | None = None
        self._kv_source = config.kv_source(layer_number)
        self._kv_sources = config.kv_sources()
        if self._kv_source != layer_number:
            num_missing = 2 * kv_size
            submodules = replace(submodules, k_layernorm=IdentityOp)
        elif config.full_attention_k_eq_v and not config.has_window(layer_number):
            num_missing = kv_size
        if num_missing:
            submodules = replace(submodules, linear_qkv=partial(_with_fewer_rows, submodules.linear_qkv, num_missing))
        super().__init__(config, submodules, layer_number, *args, **kwargs)

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Like the base class, but the second and third part of `linear_qkv` may be missing."""
        head_dim, num_groups = self.hidden_size_per_attention_head, self.num_query_groups_per_partition
        num_rows = self.num_attention_heads_per_partition // num_groups * head_dim
        mixed, _ = apply_module(self.linear_qkv)(hidden_states)
        query, *kv = mixed.unflatten(-1, (num_groups, -1)).tensor_split([num_rows, num_rows + head_dim], dim=-1)
        assert self.q_layernorm is not None and self.k_layernorm is not None
        query = apply_module(self.q_layernorm)(query.unflatten(-1, (-1, head_dim)).flatten(2, 3))
        if self._kv_source != self.layer_number:
            assert self.kv is not None
            key, value = self.kv.chunk(2, dim=-1)
            return query, key, value
        key, value = kv if kv[1].shape[-1] else (kv[0], kv[0])
        key, value = apply_module(self.k_layernorm)(key), self._normalise(value)
        if self.layer_number in self._kv_sources:
            self.kv = torch.cat([key, value], dim=-1)
        return query, key, value

    def kv_of_source(self, context: torch.Tensor) -> torch.Tensor | None:
        """The keys and values of an earlier layer, if this one uses them. All sources have run by then."""
        if self._kv_source == self.layer_number:
            return None
        num_groups, head_dim = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        num_parts = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
        size = num_parts * num_groups * 2 * head_dim
        is_first = self._kv_source == self._kv_sources[0]
        later_inputs = (self.config.num_layers - self.layer_number) * self.config.hidden_size_per_layer_input
        part = context.narrow(-1, later_inputs if is_first else context.shape[-1] - size, size)
        return part.contiguous().view(-1, part.shape[1], num_groups, 2 * head_dim)

    def with_own_kv(self, context: torch.Tensor) -> torch.Tensor:
        """The context, with the keys and values of this layer at its end if others use them."""
        kv, self.kv = self.kv, None
        if self.layer_number not in self._kv_sources:
            return context
        assert kv is not None
        # With sequence parallelism, the rank's heads for all tokens are handed on as if they were for its own tokens.
        return torch.cat([context, kv.reshape(*context.shape[:2], -1)], dim=-1)

    def _normalise(self, value: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(value, value.shape[-1:], eps=self.config.layernorm_epsilon)


def _with_fewer_rows[LinearT](
    linear: Callable[..., LinearT], num_missing: int, input_size: int, output_size: int, **kwargs: Any
) -> LinearT:
    return linear(input_size, output_size - num_missing, **kwargs)
