"""Self-attention that keeps rotated keys while a model generates."""

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention as CoreSelfAttention
from megatron.core.transformer.enums import AttnMaskType

from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.generation_context import GenerationContext


class KeepsRotatedKeys:
    """What an attention of megatron-core keeps in a `GenerationContext`.

    In its own contexts it keeps keys as they are before the rotary embedding, and rotates all of them for each token.
    """

    config: Any
    layer_number: int

    def _adjust_key_value_for_inference(
        self,
        inference_context: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary_pos_emb: tuple[torch.Tensor, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The query, the keys and values of all tokens so far, angles unless they are used up, and the kind of mask."""
        attention: Any = self
        if not isinstance(inference_context, GenerationContext):
            base: Any = super()
            adjusted: tuple[Any, ...] = base._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *args, **kwargs
            )
            return adjusted
        if rotary_pos_emb is not None:
            how = (rotary_pos_emb[0], self.config.rotary_interleaved, attention._yarn_concentration_factor)
            heads = inference_context.rotate(torch.cat([query, key], dim=2), *how)
            query, key = heads.split([query.shape[2], key.shape[2]], dim=2)
        key, value = inference_context.remember(self.layer_number, key, value)
        kind = AttnMaskType.no_mask if inference_context.decode_mode else attention.attn_mask_type
        return query, key, value, None, kind, None


class SelfAttention(KeepsRotatedKeys, CoreSelfAttention):  # type: ignore[misc]  # it takes any context
    """megatron-core's self-attention, which keeps rotated keys in a `GenerationContext`."""

    config: DecoderConfig

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in the base class; one token of a generation goes straight from projection to projection."""
        context = kwargs.get("inference_context")
        is_short = isinstance(context, GenerationContext) and context.decode_mode
        output: tuple[torch.Tensor, torch.Tensor | None]
        output = self._forward_token(*args, **kwargs) if is_short else super().forward(*args, **kwargs)
        return output

    def _forward_token(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        inference_context: GenerationContext,
        rotary_pos_emb: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        modules: Any = self  # megatron-core declares what builds them
        config: Any = self.config
        has_rope = not (config.no_rope_freq and config.no_rope_freq[self.layer_number - 1])
        angles = (rotary_pos_emb, rotary_pos_emb) if has_rope and rotary_pos_emb is not None else None
        query, key, value, *gate = modules.get_query_key_value_tensors(
            hidden_states, output_gate=config.attention_output_gate
        )
        query, key, value, _, kind, _ = self._adjust_key_value_for_inference(
            inference_context, query, key, value, angles
        )
        attended = modules.core_attention(query, key, value, attention_mask, attn_mask_type=kind)
        if gate:
            attended = modules._apply_output_gate(attended, *gate)
        output: tuple[torch.Tensor, torch.Tensor | None] = modules.linear_proj(attended)
        return output
