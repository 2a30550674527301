"""Ministral 3's attention: the query grows with the logarithm of its position."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.layer_specs import attention_submodules

_FROM_ROPE = ("llama_4_scaling_beta", "original_max_position_embeddings")


@dataclass
class Ministral3Provider(GPTModelProvider):
    """A provider whose attention scales the query by `1 + beta * log(1 + floor(position / original length))`.

    beta is `llama_4_scaling_beta` in `rope_parameters`. Source: transformers 5.23, `get_llama_4_attn_scale`.
    """

    has_relative_positions: ClassVar[bool] = False

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        if self.context_parallel_size > 1:
            raise UnsupportedConfigError(
                "Ministral3Provider: context_parallel_size must be 1, because the query is scaled by its position"
            )
        missing = [name for name in _FROM_ROPE if name not in (self.rope_parameters or {})]
        if missing:
            raise UnsupportedConfigError(
                f"Ministral3Provider: rope_parameters must have {' and '.join(missing)}, by which the query is scaled; "
                f"found {self.rope_parameters!r:.300}"
            )
        attention = attention_submodules(spec)
        attention.core_attention = partial(_build_core_attention, attention.core_attention)


def _build_core_attention[AttentionT](
    core_attention: Callable[..., AttentionT], config: Ministral3Provider, **kwargs: Any
) -> AttentionT:
    module = core_attention(config=config, **kwargs)
    assert config.rope_parameters is not None
    beta, length = (config.rope_parameters[name] for name in _FROM_ROPE)
    assert isinstance(module, torch.nn.Module)
    module.register_forward_pre_hook(partial(_scale_query, beta, length), with_kwargs=True)
    return module


def _scale_query(
    beta: float, length: int, module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """`query` is `[Sq, B, A, D]`, for the last Sq of Sk positions; `key` is `[Sk, B, G, D]`. A KV cache has Sk > Sq."""
    query, key, *others = args
    if kwargs.get("packed_seq_params") is not None:
        raise UnsupportedConfigError("Ministral3: packed sequences are not supported, because positions start again")
    positions = torch.arange(key.shape[0] - query.shape[0], key.shape[0], device=query.device)
    scale = 1 + beta * torch.log(1 + torch.floor(positions / length))
    return (query * scale.to(query.dtype)[:, None, None, None], key, *others), kwargs
