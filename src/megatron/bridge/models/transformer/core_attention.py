"""megatron-core's DotProductAttention, computed by torch's kernels where they can, and with what it lacks.

These are softcapped scores, a window that respects a given mask, and values whose width differs from that of keys.

B sequences, Sq queries and Sk keys (more with a KV cache: the queries are the last positions), A heads, G query groups,
D channels of a query or key, E of a value.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreDotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.utils import attention_mask_func, get_sliding_window_causal_mask

from megatron.bridge.models.transformer.decoder_config import DecoderConfig


class WindowSoftmax(FusedScaleMaskSoftmax):
    """A softmax of scores that are first capped, then masked by the window and the given mask together.

    megatron-core's replaces a given mask (of padding, or of an image that sees itself) with the window's.

    Args:
        softcap: c in `c * tanh(scores / c)` (arXiv 2408.00118, section 2); `None` for none.
    """

    def __init__(
        self, *args: Any, softcap: float | None, window_size: tuple[int, int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)  # without the window, so that it makes no mask of it
        self.softcap, self.window = softcap, window_size

    def forward(
        self, input: torch.Tensor, mask: torch.Tensor | None, softmax_offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The probabilities for scores `[B, A, Sq, Sk]`; `mask`, broadcast to them, is true where nothing is seen."""
        if self.softcap is not None:
            input = torch.tanh(input / self.softcap) * self.softcap
        probabilities: torch.Tensor
        if self.window is not None:
            hidden = get_sliding_window_causal_mask(input.size(2), input.size(3), self.window)
            mask = hidden if mask is None else mask | hidden
            probabilities = self.forward_torch_softmax(input, mask, softmax_offset)  # the fused kernel knows no window
        else:
            probabilities = super().forward(input, mask, softmax_offset)
        return probabilities


@lru_cache(maxsize=1)
def _hidden(num_queries: int, num_keys: int, window: tuple[int, int], device: torch.device) -> torch.Tensor:
    """True for the keys that a query does not see, `[Sq, Sk]`: later ones, and those before its window (-1: none)."""
    distances = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    distances = distances - torch.arange(num_keys, device=device)
    hidden = distances < -window[1]
    return hidden if window[0] < 0 else hidden | (distances > window[0])


class DotProductAttention(CoreDotProductAttention):
    """Attention by `torch.nn.functional.scaled_dot_product_attention`, or as megatron-core writes it out.

    The latter is for what torch's function lacks: the config's `attn_logit_softcapping`, and sinks (`softmax_type`).

    Args:
        k_channels, v_channels: channels per head of keys and of values, as in Transformer Engine's module; default:
            the config's `kv_channels` for both.
    """

    config: DecoderConfig

    def __init__(self, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if v_channels is not None:
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition
        softmax = self.scale_mask_softmax
        self.window: tuple[int, int] | None = softmax.window_size
        self.has_kernel = self.config.attn_logit_softcapping is None and self.softmax_offset is None
        self.scale_mask_softmax = WindowSoftmax(
            input_in_fp16=softmax.input_in_fp16,
            input_in_bf16=softmax.input_in_bf16,
            attn_mask_type=softmax.attn_mask_type,
            scaled_masked_softmax_fusion=softmax.scaled_masked_softmax_fusion,
            mask_func=attention_mask_func,
            softmax_in_fp32=softmax.softmax_in_fp32,
            scale=softmax.scale,
            window_size=softmax.window_size,
            softcap=self.config.attn_logit_softcapping,
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The values that the queries see, `[Sq, B, A * E]`.

        Args:
            query: `[Sq, B, A, D]`.
            key: `[Sk, B, G, D]`.
            value: `[Sk, B, G, E]`.
            attention_mask: broadcast to `[B, A, Sq, Sk]`, true where nothing is seen; default: each query sees the
                keys up to its own position. A window holds besides.
        """
        is_usual = kwargs.get("attention_bias") is None and kwargs.get("packed_seq_params") is None
        if not (self.has_kernel and is_usual):
            output: torch.Tensor = super().forward(query, key, value, attention_mask, *args, **kwargs)
            return output
        num_queries, num_keys, mask = query.shape[0], key.shape[0], attention_mask
        if num_queries == 1 and self.window is not None and self.window[0] >= 0:
            start = max(0, num_keys - 1 - self.window[0])
            key, value, mask = key[start:], value[start:], None if mask is None else mask[..., start:]
        elif self.window is not None and (num_keys > self.window[0] + 1 or self.window[1] != 0):
            hidden = _hidden(num_queries, num_keys, self.window, query.device)
            mask = hidden if mask is None else mask | hidden
        is_causal = mask is None and num_queries > 1 and self.attn_mask_type == AttnMaskType.causal
        if is_causal and num_keys > num_queries:
            mask, is_causal = _hidden(num_queries, num_keys, (-1, 0), query.device), False
        return self._attend(query, key, value, None if mask is None else ~mask, is_causal)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        num_queries, batch_size, num_heads, _ = query.shape
        num_groups = key.shape[2]
        key, value = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
        is_token = num_queries == 1 and (visible is None or visible.dim() < 3 or visible.shape[-3] == 1)
        if is_token:
            # The heads of a group are like queries at one position, so that the group's keys are read once.
            query = query.reshape(batch_size, num_groups, num_heads // num_groups, -1)
        else:
            query = query.permute(1, 2, 0, 3)
        if not is_token and visible is not None and num_groups < num_heads:  # no fused kernel for CUDA has both
            key, value = (x.repeat_interleave(num_heads // num_groups, dim=1) for x in (key, value))
        dropout = self.attention_dropout.p if self.training else 0.0
        is_split = dropout and not self.config.sequence_parallel  # over heads: each rank drops other probabilities
        with get_cuda_rng_tracker().fork() if is_split else nullcontext():
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                visible,
                dropout,
                is_causal,
                scale=self.softmax_scale * (self.scale_mask_softmax.scale or 1.0),
                enable_gqa=query.shape[1] != key.shape[1],
            )
        if is_token:
            return output.reshape(1, batch_size, -1)
        return output.permute(2, 0, 1, 3).flatten(2)
