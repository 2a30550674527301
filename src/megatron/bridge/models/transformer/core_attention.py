"""megatron-core's DotProductAttention with what it lacks.

These are softcapped scores, a window that respects a given mask, and values whose width differs from that of keys.
"""

from typing import Any

import torch
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreDotProductAttention
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


class DotProductAttention(CoreDotProductAttention):
    """Reads the config's `attn_logit_softcapping`, besides the fields that the base class reads.

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
