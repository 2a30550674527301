"""Activation functions that neither torch nor megatron-core has under a name of their own."""

import torch
import torch.nn.functional as F


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh approximation (arXiv 1606.08415); HF `gelu_pytorch_tanh`."""
    return F.gelu(x, approximate="tanh")


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """The same function as `gelu_tanh`, under the name of HF's `gelu_new`, so that a config keeps the name it has."""
    return F.gelu(x, approximate="tanh")
