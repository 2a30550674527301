"""Gemma 4's mixture of experts, which stands beside a dense MLP; each is between norms of its own."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.torch_norm import LayerNormBuilder
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.typed_torch import apply_module

from megatron.bridge.models.transformer.layer_specs import mlp_arguments, mlp_submodules, post_norm_builder
from megatron.bridge.models.transformer.router import GeneralTopKRouter


def make_experts_parallel(layer: TransformerLayerSubmodules) -> None:
    """Changes the spec of a layer with experts in place. The dense MLP is what megatron-core calls a shared expert."""
    layer.pre_mlp_layernorm = IdentityOp
    layer.mlp = partial(Gemma4MoELayer, norm=post_norm_builder(layer), **mlp_arguments(layer))
    experts = mlp_submodules(layer)
    assert isinstance(experts, MoESubmodules)
    experts.router = Gemma4Router


class Gemma4MoELayer(MoELayer):
    """The sum of a dense MLP and experts. The input is not normalised: dense MLP, experts and router do it themselves.

    Args:
        norm: builds a norm from `config`, `hidden_size` and `eps`.
    """

    def __init__(self, config: TransformerConfig, *args: Any, norm: LayerNormBuilder, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        make_norm = partial(norm, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
        self.pre_dense_layernorm, self.post_dense_layernorm = make_norm(), make_norm()
        self.pre_experts_layernorm, self.post_experts_layernorm = make_norm(), make_norm()

    def shared_experts_compute(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The dense MLP's output."""
        output = super().shared_experts_compute(apply_module(self.pre_dense_layernorm)(hidden_states))
        return apply_module(self.post_dense_layernorm)(output)

    def preprocess(self, hidden_states: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Like the base class, with an input that is normalised for the experts."""
        normed = apply_module(self.pre_experts_layernorm)(hidden_states)
        states_and_probs: tuple[torch.Tensor, torch.Tensor] = super().preprocess(normed, *args)
        return states_and_probs

    def postprocess(self, output: torch.Tensor, shared_expert_output: torch.Tensor | None) -> torch.Tensor:
        """The sum of both outputs."""
        assert shared_expert_output is not None
        return apply_module(self.post_experts_layernorm)(super().postprocess(output, None)) + shared_expert_output


class Gemma4Router(GeneralTopKRouter):
    """A router with a norm and a scale for each input dimension, and a factor for the output of each expert."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        self.scale = torch.nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))
        self.per_expert_scale = torch.nn.Parameter(torch.ones(self.num_experts, dtype=config.params_dtype))
        for parameter in (self.scale, self.per_expert_scale):
            setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (not an attribute of Parameter)

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        """Logits `[S, B, E]`."""
        normed = F.rms_norm(input, input.shape[-1:], eps=self.config.layernorm_epsilon)
        logits: torch.Tensor = super().gating(normed * self.scale * self.config.hidden_size**-0.5)
        return logits

    def routing(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of the experts and their choice, both `[T, E]`."""
        probs, routing_map = super().routing(*args, **kwargs)
        return probs * self.per_expert_scale, routing_map
