"""Llama 4's attention: chunks, norms without weights, and a query that grows with its position."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.core_attention import DotProductAttention
from megatron.bridge.models.transformer.layer_specs import attention_submodules

# Positional and keyword arguments of the core attention: query, key, value, mask and others.
type _Arguments = tuple[tuple[torch.Tensor, ...], dict[str, Any]]


@dataclass
class Llama4Provider(GPTModelProvider):
    """A provider whose layers have both rotary embeddings and chunks or, where `no_rope_freq` says so, neither.

    Source: transformers 5.23, `Llama4TextAttention`.

    Attributes:
        attention_chunk_size: in layers with rotary embeddings, a position sees only its own chunk of this length.
        rope_layer_qk_norm: whether these layers divide q and k of each head by their root mean square.
        attention_temperature_tuning: whether the other layers multiply the query at position p by
            `1 + attention_scale * log(1 + floor((p + 1) / attention_floor_scale))`.
    """

    has_relative_positions: ClassVar[bool] = False
    attention_chunk_size: int = 8192
    rope_layer_qk_norm: bool = True
    attention_temperature_tuning: bool = True
    attention_floor_scale: int = 8192
    attention_scale: float = 0.1

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        if self.context_parallel_size > 1:
            raise UnsupportedConfigError("Llama4Provider: context_parallel_size must be 1: attention is chunked")
        # Transformer Engine's core attention knows no chunks.
        attention_submodules(spec).core_attention = partial(_build_core_attention, DotProductAttention)


def _build_core_attention(
    core_attention: Callable[..., DotProductAttention], config: Llama4Provider, layer_number: int, **kwargs: Any
) -> DotProductAttention:
    module = core_attention(config=config, layer_number=layer_number, **kwargs)
    no_rope = isinstance(config.no_rope_freq, list) and config.no_rope_freq[layer_number - 1]
    module.register_forward_pre_hook(partial(_without_rope if no_rope else _with_rope, config), with_kwargs=True)
    return module


def _with_rope(
    config: Llama4Provider, module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> _Arguments:
    """`query` is `[Sq, B, A, D]`, for the last Sq of Sk positions; `key` is `[Sk, B, G, D]`. A KV cache has Sk > Sq."""
    query, key, value, mask, *others = args
    if config.rope_layer_qk_norm:
        query, key = (_normalise(x, config.layernorm_epsilon) for x in (query, key))
    keys = torch.arange(key.shape[0], device=query.device)
    queries = keys[key.shape[0] - query.shape[0] :, None]
    hidden = (keys > queries) | (keys // config.attention_chunk_size != queries // config.attention_chunk_size)
    return (query, key, value, hidden if mask is None else mask | hidden, *others), kwargs


def _without_rope(
    config: Llama4Provider, module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> _Arguments:
    query, key, *others = args
    if config.attention_temperature_tuning:
        positions = torch.arange(key.shape[0] - query.shape[0], key.shape[0], device=query.device)
        steps = torch.floor((positions + 1.0) / config.attention_floor_scale)
        scale = 1 + config.attention_scale * torch.log1p(steps)
        query = (query * scale[:, None, None, None]).to(query.dtype)
    return (query, key, *others), kwargs


def _normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
