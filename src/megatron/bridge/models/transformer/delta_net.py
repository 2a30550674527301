"""megatron-core's gated delta net (arXiv 2412.06464), which keeps its state while a model generates.

B sequences, S positions, H heads, K size of a key, V size of a value.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.ssm.gated_delta_net import GatedDeltaNet as CoreGatedDeltaNet

from megatron.bridge.models.transformer.generation_context import GenerationContext, with_earlier_inputs


class GatedDeltaNet(CoreGatedDeltaNet):
    """A gated delta net that remembers the inputs of its convolution and its matrix of each head."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in the base class, for `hidden_states` `[S, B, hidden size]`."""
        context = kwargs.get("inference_context")
        if not isinstance(context, GenerationContext):
            return super().forward(hidden_states, *args, **kwargs)
        length, batch_size, _ = hidden_states.shape
        mixed = self.in_proj(hidden_states)[0].transpose(0, 1)
        qkv, gate, beta, alpha = mixed.split(self.feat_dim_split, dim=-1)
        gate = gate.reshape(batch_size, length, -1, self.value_head_dim)
        qkv = with_earlier_inputs(context, self.layer_number, qkv, self.conv1d.weight.shape[-1] - 1)
        qkv = F.conv1d(qkv.mT, self.conv1d.weight, self.conv1d.bias, groups=qkv.shape[-1])
        inputs = (self.act_fn(qkv).mT, gate, batch_size, length, beta, alpha)
        query, key, value, gate, beta, alpha = self._prepare_input_for_gated_delta_rule(*inputs)
        decay, beta = self._compute_g_and_beta(self.A_log, self.dt_bias, alpha, beta)
        sizes = (batch_size, value.shape[2], self.key_head_dim, self.value_head_dim)
        memory = context.state(self.layer_number, "memory", value.new_empty(sizes, dtype=torch.float32))
        if length == 1:
            output = gated_delta_step(query, key, value, decay, beta, memory)
        else:
            output, last = self.gated_delta_rule(
                query, key, value, g=decay, beta=beta, initial_state=memory, output_final_state=True
            )
            assert last is not None
            memory.copy_(last)
        return self.out_proj(self._gated_norm_and_a2a(output, gate, None, batch_size, length, None))


def gated_delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    memory: torch.Tensor,
) -> torch.Tensor:
    """One position: the memory decays, learns to give the value for the key, and is asked with the query.

    Args:
        query, key: `[B, 1, H, K]`.
        value: `[B, 1, H, V]`.
        decay, beta: `[B, 1, H]`; the logarithm of the decay.
        memory: `[B, H, K, V]` in fp32, written in place.

    Returns:
        `[B, 1, H, V]`.
    """
    query, key, new, beta = (part[:, 0].float() for part in (query, key, value, beta))
    memory *= decay[:, 0].float().exp()[..., None, None]
    error = (new - torch.einsum("bhk,bhkv->bhv", key, memory)) * beta[..., None]
    memory += key[..., None] * error[..., None, :]
    output = torch.einsum("bhk,bhkv->bhv", query * query.shape[-1] ** -0.5, memory)
    return output[:, None].to(value.dtype)
