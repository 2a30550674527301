"""Adding the output of attention or of the MLP to the residual stream, after it is normalised or scaled."""

from collections.abc import Callable
from functools import partial

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add

from megatron.bridge.models.transformer.decoder_config import DecoderConfig

# An output, and a bias to be added to it.
type _Biased = tuple[torch.Tensor, torch.Tensor | None]
type _Add = Callable[[_Biased, torch.Tensor, float], torch.Tensor]

# Where checkpoints hold the norms: as parts of the linear layers whose outputs they normalise.
POST_NORM_KEYS = {
    "self_attn_bda.post_layernorm.": "self_attention.linear_proj.post_layernorm.",
    "mlp_bda.post_layernorm.": "mlp.linear_fc2.post_layernorm.",
}


class BiasDropoutAdd(torch.nn.Module):
    """megatron-core's `get_bias_dropout_add`, but the output (with its bias) is first normalised, then multiplied.

    The norm is not part of the linear layer in front of it, so that the output of an adapter beside that layer, or of
    experts in its place, is normalised too. With sequence parallelism it sees the rank's part of the sequence, as
    other norms do.

    Args:
        config: gives `use_post_norms` and `residual_multiplier`.
        norm: builds the norm from `config`, `hidden_size` and `eps`.
    """

    def __init__(self, config: DecoderConfig, norm: Callable[..., torch.nn.Module]) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.post_layernorm: torch.nn.Module | None = None
        if config.use_post_norms:
            self.post_layernorm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        """Gives the function of output and bias, residual and dropout that megatron-core calls."""
        return partial(self._add, get_bias_dropout_add(training, fused))

    def _add(self, add: _Add, output_with_bias: _Biased, residual: torch.Tensor, dropout: float) -> torch.Tensor:
        output, bias = output_with_bias
        output = output if bias is None else output + bias
        if self.post_layernorm is not None:
            output = self.post_layernorm(output)
        return add((output * self.multiplier, None), residual, dropout)
