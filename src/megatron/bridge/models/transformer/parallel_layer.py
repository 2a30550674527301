"""A layer whose attention and MLP read the same normed input (GPT-J, Phi, Cohere): x + attention(n(x)) + mlp(n(x))."""

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.typed_torch import apply_module


class ParallelTransformerLayer(TransformerLayer):
    """A TransformerLayer with one norm, `input_layernorm`; `pre_mlp_layernorm` must be an IdentityOp."""

    _layer_input: torch.Tensor | None = None

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Like the base class."""
        self._layer_input = hidden_states
        try:
            output: tuple[torch.Tensor, torch.Tensor | None] = super().forward(hidden_states, *args, **kwargs)
        finally:
            self._layer_input = None
        return output

    def _forward_pre_mlp_layernorm(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The base class takes a pair for the MLP's input and its residual. The norm is computed again: it is cheap
        # compared with the MLP, and this stays right where the base class recomputes it.
        assert self._layer_input is not None
        return apply_module(self.input_layernorm)(self._layer_input), hidden_states
