"""Rotary embeddings and heads that differ between layers with a sliding window and the others.

Gemma 3 and OLMo 3 have such embeddings, Gemma 4 and MiMo-V2-Flash both.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention

if TYPE_CHECKING:
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig


class LayerRotaryEmbedding(torch.nn.Module):
    """Two rotary embeddings, whose angles are made and handed down as one tensor.

    Args:
        full, window: embeddings of the layers with full attention and of those with a sliding window.
    """

    def __init__(self, full: torch.nn.Module, window: torch.nn.Module) -> None:
        super().__init__()
        self.full, self.window = full, window

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        """The number of positions to make."""
        return self.full.get_rotary_seq_len(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Angles `[2, S, 1, 1, D]`: for full attention, then for windows, the narrower ones padded at the end."""
        angles = [self.full(*args, **kwargs), self.window(*args, **kwargs)]
        width = max(emb.shape[-1] for emb in angles)
        return torch.stack([F.pad(emb, (0, width - emb.shape[-1])) for emb in angles])


class LayerRopeSelfAttention(SelfAttention):
    """Has its kind of layer's config fields, and takes its angles out of what `LayerRotaryEmbedding` made."""

    def __init__(self, config: "DecoderConfig", submodules: Any, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config.layer_config(layer_number), submodules, layer_number, *args, **kwargs)

    def forward(self, hidden_states: torch.Tensor, *args: Any, rotary_pos_emb: Any = None, **kwargs: Any) -> Any:
        """As the base class."""
        config = self.config
        if rotary_pos_emb is not None and config.window_rope_parameters is not None:
            rotary_pos_emb = rotary_pos_emb[int(config.has_window(self.layer_number))][
                ..., : self.hidden_size_per_attention_head
            ]
        return super().forward(hidden_states, *args, rotary_pos_emb=rotary_pos_emb, **kwargs)
