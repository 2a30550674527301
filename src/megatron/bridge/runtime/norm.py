"""The norm of local (non Transformer Engine) layer specs, in plain torch, with the rounding of Hugging Face models."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


class TorchNorm(torch.nn.Module):
    """RMSNorm or LayerNorm over the last dimension, with statistics in fp32.

    Takes the place of `megatron.core.transformer.torch_norm.WrappedTorchNorm`, which refuses sequence parallelism,
    zero-centred weights and `persist_layer_norm`. `persist_layer_norm` and `memory_efficient_layer_norm` choose
    kernels, not results, and have no effect here.

    In low precision it matters where the rounding happens (transformers 5.23):

    - RMSNorm: `weight * normalised.to(x.dtype)`, as `LlamaRMSNorm`, or `(weight * normalised).to(x.dtype)` in fp32, as
      `Olmo2RMSNorm`;
    - zero-centred RMSNorm: `(normalised * (1 + weight)).to(x.dtype)` in fp32, as `GemmaRMSNorm`;
    - LayerNorm: `torch.nn.LayerNorm`; zero-centred: with weight `weight + 1`, as `NemotronLayerNorm1P`.

    Args:
        config: gives `normalization`, `layernorm_zero_centered_gamma`, `sequence_parallel`, `params_dtype` and, if it
            has them, `norm_bias` and `norm_weight_in_fp32`.
        hidden_size: the size of the last dimension, D. Parameters: `weight` `[D]` and, for LayerNorm unless `norm_bias`
            is false, `bias` `[D]`.
        eps: added to the variance (LayerNorm) or to the mean square (RMSNorm).
        normalization: "RMSNorm" or "LayerNorm"; default: the config's.
        zero_centered_gamma: default: the config's `layernorm_zero_centered_gamma`.
        persist_layer_norm: accepted because megatron-core passes it.

    Raises:
        UnsupportedConfigError: an unknown normalization.
    """

    def __init__(
        self,
        config: "TransformerConfig",
        hidden_size: int,
        eps: float = 1e-5,
        normalization: str | None = None,
        zero_centered_gamma: bool | None = None,
        persist_layer_norm: bool = False,
    ) -> None:
        super().__init__()
        normalization = normalization or config.normalization
        if normalization not in ("RMSNorm", "LayerNorm"):
            raise UnsupportedConfigError(
                f"TorchNorm: normalization={normalization!r} is not known; expected 'RMSNorm' or 'LayerNorm'."
            )
        self.normalization = normalization
        self.zero_centered = (
            config.layernorm_zero_centered_gamma if zero_centered_gamma is None else zero_centered_gamma
        )
        self.weight_in_fp32 = self.zero_centered or getattr(config, "norm_weight_in_fp32", False)
        self.hidden_size = hidden_size
        self.eps = eps
        weight = torch.full((hidden_size,), 0.0 if self.zero_centered else 1.0, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(weight)
        self.bias: torch.nn.Parameter | None
        has_bias = normalization == "LayerNorm" and getattr(config, "norm_bias", True)
        bias = torch.nn.Parameter(torch.zeros_like(weight)) if has_bias else None
        self.register_parameter("bias", bias)
        for parameter in self.parameters():
            # Each rank of the group sees part of the sequence, so megatron-core has to sum the gradients over them.
            setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (not an attribute of Parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `x` `[..., D]`."""
        if self.normalization == "LayerNorm":
            weight = self.weight + 1 if self.zero_centered else self.weight
            return F.layer_norm(x, (self.hidden_size,), weight, self.bias, self.eps)
        shape = (self.hidden_size,)
        if self.zero_centered:
            return F.rms_norm(x.float(), shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)
        if self.weight_in_fp32 or x.dtype == torch.float32:
            dtype = torch.promote_types(x.dtype, self.weight.dtype)
            return F.rms_norm(x.to(dtype), shape, self.weight.to(dtype), self.eps).to(x.dtype)
        return (self.weight * F.rms_norm(x, shape, None, self.eps)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.normalization}, {self.hidden_size}, eps={self.eps}, zero_centered={self.zero_centered}"
