"""Gemma 4's layers: attention that differs between layers with a window and layers with full attention."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import is_layer_window_attention

from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.gemma.modeling_gemma4_moe import make_experts_parallel
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.layer_rope import LayerRopeSelfAttention


@dataclass
class Gemma4Provider(GPTModelProvider):
    """A provider whose layers with full attention have heads of their own size and number.

    Attributes:
        full_kv_channels, full_num_query_groups: `kv_channels` and `num_query_groups` of these layers.
        full_attention_k_eq_v: their values are the keys, before norm and rotary embedding.
    """

    full_kv_channels: int = 0
    full_num_query_groups: int = 0
    full_attention_k_eq_v: bool = False

    def finalize(self) -> None:
        super().finalize()
        if self.full_num_query_groups % self.tensor_model_parallel_size:
            raise ParallelLayoutError(
                f"tensor_model_parallel_size {self.tensor_model_parallel_size} must divide full_num_query_groups "
                f"{self.full_num_query_groups}; choose a smaller tensor_model_parallel_size"
            )

        if self.moe_shared_expert_overlap:
            raise UnsupportedConfigError(
                "Gemma4Provider: moe_shared_expert_overlap must be False: norms stand around the dense MLP"
            )

    def head_dim(self, has_window: bool) -> int:
        return self.kv_channels if has_window else self.full_kv_channels

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        spec.module = Gemma4TransformerLayer
        spec.submodules.self_attention.module = Gemma4SelfAttention
        if self.num_moe_experts is not None:
            make_experts_parallel(spec.submodules)


class Gemma4TransformerLayer(TransformerLayer):
    """A TransformerLayer whose output is multiplied by a constant that the checkpoint holds."""

    def __init__(self, config: Gemma4Provider, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.register_buffer("layer_scalar", torch.ones(1, dtype=config.params_dtype))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class."""
        hidden_states, context = super().forward(*args, **kwargs)
        return hidden_states * self.layer_scalar, context


class Gemma4SelfAttention(LayerRopeSelfAttention):
    """Attention with the head size of its kind of layer, norms of q, k and v, and perhaps values that are the keys."""

    def __init__(
        self, config: Gemma4Provider, submodules: SelfAttentionSubmodules, layer_number: int, *args: Any, **kwargs: Any
    ) -> None:
        if not is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
            config = copy.copy(config)
            config.kv_channels, config.num_query_groups = config.full_kv_channels, config.full_num_query_groups
            if config.full_attention_k_eq_v:
                num_values = config.kv_channels * config.num_query_groups
                submodules = replace(submodules, linear_qkv=partial(_without_values, submodules.linear_qkv, num_values))
        super().__init__(config, submodules, layer_number, *args, **kwargs)
        num_heads = self.num_attention_heads_per_partition // self.num_query_groups_per_partition
        self._split = [num_heads * config.kv_channels, config.kv_channels, config.kv_channels]

    def get_query_key_value_tensors(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the base class; the third of `linear_qkv`'s parts may be missing."""
        mixed, _ = self.linear_qkv(hidden_states)
        groups = mixed.unflatten(-1, (self.num_query_groups_per_partition, -1))
        num_parts = 3 if groups.shape[-1] == sum(self._split) else 2
        query, key, *value = groups.split(self._split[:num_parts], dim=-1)
        query = query.unflatten(-1, (-1, self._split[1])).flatten(2, 3)
        return self.q_layernorm(query), self.k_layernorm(key), self._normalise(value[0] if value else key)

    def _normalise(self, value: torch.Tensor) -> torch.Tensor:
        square = value.float().pow(2).mean(-1, keepdim=True)
        return (value.float() * torch.rsqrt(square + self.config.layernorm_epsilon)).to(value.dtype)


def _without_values(linear: Any, num_values: int, input_size: int, output_size: int, **kwargs: Any) -> Any:
    return linear(input_size, output_size - num_values, **kwargs)
