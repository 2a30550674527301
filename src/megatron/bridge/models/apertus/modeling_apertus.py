"""Apertus's MLP: two layers with xIELU between them, whose two slopes are learned."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.layer_specs import layer_submodules, mlp_arguments


@dataclass
class ApertusProvider(GPTModelProvider):
    """A provider whose MLPs have xIELU; `activation_func` is not read."""

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        layer = layer_submodules(spec)
        layer.mlp = partial(XIELUMLP.as_mlp_submodule, **mlp_arguments(layer))


class XIELUMLP(MLP):
    """megatron-core's MLP with an activation of its own."""

    def __init__(self, config: ApertusProvider, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.activation_func = XIELU(config.params_dtype)


class XIELU(torch.nn.Module):
    """xIELU (arXiv 2411.13010): `a_p x^2 + b x` where x > 0, else `a_n (exp(min(x, e)) - 1 - x) + b x`.

    `a_p = softplus(alpha_p)` and `a_n = b + softplus(alpha_n)`. The constants b = 0.5 and e = -1e-6 are buffers,
    because HF checkpoints hold them (transformers 5.23, `XIELUActivation`).
    """

    beta: torch.Tensor
    eps: torch.Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.alpha_p = torch.nn.Parameter(_inverse_softplus(0.8, dtype))
        self.alpha_n = torch.nn.Parameter(_inverse_softplus(0.8 - 0.5, dtype))
        self.register_buffer("beta", torch.tensor(0.5, dtype=dtype))
        self.register_buffer("eps", torch.tensor(-1e-6, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes any shape. A rank has some of the dimensions, so the slopes' gradients are summed over ranks."""
        alpha_p = F.softplus(copy_to_tensor_model_parallel_region(self.alpha_p))
        alpha_n = self.beta + F.softplus(copy_to_tensor_model_parallel_region(self.alpha_n))
        negative = (torch.expm1(torch.minimum(x, self.eps)) - x) * alpha_n
        return torch.where(x > 0, alpha_p * x * x, negative) + self.beta * x


def _inverse_softplus(value: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.log(torch.expm1(torch.tensor([value], dtype=dtype)))
