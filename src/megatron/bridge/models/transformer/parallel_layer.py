"""A layer whose attention and MLP read the same normed input (GPT-J, Phi, Cohere): x + attention(n(x)) + mlp(n(x))."""

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer


class ParallelTransformerLayer(TransformerLayer):
    """A TransformerLayer with one norm, `input_layernorm`; `pre_mlp_layernorm` must be an IdentityOp."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the base class."""
        self._layer_input = hidden_states
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self._layer_input = None

    def _forward_pre_mlp_layernorm(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The base class takes a pair as the MLP's input and its residual. The norm is computed again: it is cheap
        # beside the MLP, and stays right where the base class recomputes it.
        return self.input_layernorm(self._layer_input), hidden_states
