"""megatron-core's DotProductAttention with what it lacks.

Softcapped scores, a window that heeds a given mask, and values of another width than keys.
"""

from typing import Any

import torch
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreDotProductAttention
from megatron.core.transformer.utils import attention_mask_func, get_sliding_window_causal_mask


class WindowSoftmax(FusedScaleMaskSoftmax):
    """Softmax of scores that are capped first, and masked by the window and the given mask together.

    megatron-core's replaces a given mask (of padding, or of an image that sees itself) by the window's.

    Args:
        softcap: c in `c * tanh(scores / c)` (arXiv 2408.00118, section 2); `None` for none.
    """

    def __init__(self, *args: Any, softcap: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.softcap = softcap
        self.window = self.window_size
        self.window_size = None  # the base class shall not make a mask of it

    def forward(
        self, input: torch.Tensor, mask: torch.Tensor | None, softmax_offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Probabilities of scores `[B, A, Sq, Sk]`; `mask` (broadcast to them) is true where nothing is seen."""
        if self.softcap is not None:
            input = torch.tanh(input / self.softcap) * self.softcap
        if self.window is not None:
            hidden = get_sliding_window_causal_mask(input.size(2), input.size(3), self.window)
            mask = hidden if mask is None else mask | hidden
            return self.forward_torch_softmax(input, mask, softmax_offset)  # the fused kernel knows no window
        return super().forward(input, mask, softmax_offset)


class DotProductAttention(CoreDotProductAttention):
    """Reads `attn_logit_softcapping` of the config, in addition to the base class's fields.

    Args:
        k_channels, v_channels: channels per head of keys and values, as of Transformer Engine's module; default:
            `kv_channels` of the config for both.
    """

    def __init__(
        self, config: Any, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config, *args, **kwargs)
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
            softcap=config.attn_logit_softcapping,
        )
