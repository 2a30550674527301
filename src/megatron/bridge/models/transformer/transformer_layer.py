"""megatron-core's transformer layer, which does no more than it must for one token of a generation."""

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.transformer_layer import TransformerLayer as CoreTransformerLayer

from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.generation_context import GenerationContext

type _Biased = tuple[torch.Tensor, torch.Tensor | None]


class TransformerLayer(CoreTransformerLayer):
    """A layer of megatron-core's own modules.

    For one token, Python takes longer than the computation, most of it for what only training and other kinds of
    layers need: contexts that offload and recompute, cross-attention, dropout.
    """

    config: DecoderConfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class."""
        inference_context = kwargs.get("inference_context")
        is_short = isinstance(inference_context, GenerationContext) and inference_context.decode_mode
        if not is_short or self.config.fp32_residual_connection:
            return super().forward(*args, **kwargs)
        return self._forward_token(*args, **kwargs)

    def _forward_token(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        *,
        inference_context: GenerationContext,
        rotary_pos_emb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        modules: Any = self  # megatron-core declares what builds them
        attended: _Biased = modules.self_attention(
            modules.input_layernorm(hidden_states),
            attention_mask,
            inference_context=inference_context,
            rotary_pos_emb=rotary_pos_emb,
        )
        hidden_states = _add(modules.self_attn_bda, attended, hidden_states)
        output: _Biased = modules.mlp(modules.pre_mlp_layernorm(hidden_states))
        return _add(modules.mlp_bda, output, hidden_states), context


def _add(bias_dropout_add: Any, output_with_bias: _Biased, residual: torch.Tensor) -> torch.Tensor:
    if bias_dropout_add is not get_bias_dropout_add:  # it has a norm
        added: torch.Tensor = bias_dropout_add(False, False)(output_with_bias, residual, 0.0)
        return added
    output, bias = output_with_bias
    return residual + (output if bias is None else output + bias)
