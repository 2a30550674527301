"""Rotary embeddings, and heads, that differ between layers with a sliding window and the others.

Gemma 3 and OLMo 3 have such embeddings; Gemma 4 and MiMo-V2-Flash have such heads as well.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.attention import SelfAttentionSubmodules

from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.self_attention import SelfAttention


class LayerRotaryEmbedding(torch.nn.Module):
    """Two rotary embeddings whose angles are computed, and handed down to the layers, as one tensor.

    Args:
        full: the embedding of the layers with full attention.
        window: the embedding of the layers with a sliding window.
    """

    def __init__(self, full: RotaryEmbedding, window: RotaryEmbedding) -> None:
        super().__init__()
        self.full, self.window = full, window

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        """The number of positions to compute angles for."""
        return self.full.get_rotary_seq_len(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Angles `[2, S, 1, 1, D]`, for full attention, then for windows; the narrower ones are padded at the end."""
        angles = [self.full(*args, **kwargs), self.window(*args, **kwargs)]
        width = max(emb.shape[-1] for emb in angles)
        return torch.stack([F.pad(emb, (0, width - emb.shape[-1])) for emb in angles])


class LayerRopeSelfAttention(SelfAttention):
    """Attention with the config of its kind of layer. It takes its angles from those of `LayerRotaryEmbedding`."""

    config: DecoderConfig

    def __init__(
        self, config: DecoderConfig, submodules: SelfAttentionSubmodules, layer_number: int, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(config.layer_config(layer_number), submodules, layer_number, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Like the base class; `rotary_pos_emb` is given by name."""
        angles: torch.Tensor | None = kwargs.get("rotary_pos_emb")
        if angles is not None and self.config.window_rope_parameters is not None:
            kind = int(self.config.has_window(self.layer_number))
            kwargs["rotary_pos_emb"] = angles[kind, ..., : self.hidden_size_per_attention_head]
        return super().forward(*args, **kwargs)
