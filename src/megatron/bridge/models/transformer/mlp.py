"""megatron-core's MLP, which for the usual gated kind computes nothing besides it."""

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP as CoreMLP

from megatron.bridge.models.transformer.decoder_config import DecoderConfig


class MLP(CoreMLP):
    """An MLP; `fc2(activation(gate) * up)` without biases, limits or an offset of `up` is written out."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.is_plain = (
            config.gated_linear_unit
            and getattr(self.linear_fc1, "bias", None) is None
            and config.activation_func_clamp_value is None
            and not (config.glu_linear_offset or config.bias_activation_fusion or config.use_te_activation_func)
        )

    def forward(self, hidden_states: torch.Tensor, per_token_scale: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As in the base class, for `hidden_states` `[S, B, H]`."""
        if not self.is_plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale, **kwargs)
        modules: Any = self  # megatron-core declares interfaces that cannot be called
        gate, up = modules.linear_fc1(hidden_states)[0].chunk(2, dim=-1)
        return modules.linear_fc2(self.activation_func(gate) * up)
