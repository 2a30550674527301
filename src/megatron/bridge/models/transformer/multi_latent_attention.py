"""Multi-latent attention (MLA, arXiv 2405.04434) as in the published models, with or without Transformer Engine."""

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import LayerNormBuilder

from megatron.bridge.models.transformer.decoder_config import MLADecoderConfig
from megatron.bridge.models.transformer.self_attention import KeepsRotatedKeys


class MultiLatentSelfAttention(KeepsRotatedKeys, MLASelfAttention):  # type: ignore[misc]  # it takes any context
    """megatron-core's MLA with the modules that the spec names, and an epsilon of their own for the latents' norms.

    megatron-core itself chooses a fused norm and projection. That would put a norm in front of `linear_q_proj` if
    queries have no latent (`q_lora_rank` None), and local specs do not have it. In published models, the norms of the
    latents have epsilon 1e-6, whatever the other norms have.
    """

    config: MLADecoderConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("q_layernorm", "kv_layernorm", "linear_q_up_proj", "linear_kv_up_proj"):
            module: object = getattr(self, name, None)
            if hasattr(module, "eps"):  # a norm, or a linear layer with a fused norm
                module.eps = self.config.latent_layernorm_epsilon

    def _resolve_qk_norm_config(
        self, submodules: MLASelfAttentionSubmodules
    ) -> dict[str, ModuleSpec | type | LayerNormBuilder]:
        return {
            "linear_q_proj": submodules.linear_q_proj,
            "linear_q_up_proj": submodules.linear_q_up_proj,
            "linear_kv_up_proj": submodules.linear_kv_up_proj,
            "q_layernorm": submodules.q_layernorm or IdentityOp,
            "kv_layernorm": submodules.kv_layernorm or IdentityOp,
        }

    def _qkv_down_projection(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents `[S, B, L]`, whole on each rank (for part of the sequence with sequence parallelism).

        megatron-core gathers a column-parallel `linear_kv_down_proj` too, but does not sum the gradients of the rotary
        key, all channels of which each rank uses for its own heads.
        """
        q_compressed, kv = super()._qkv_down_projection(hidden_states)
        sizes = [self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim]
        if kv.size(-1) == sum(sizes):
            return q_compressed, kv
        kv = gather_from_tensor_model_parallel_region(kv)
        if self.config.sequence_parallel:  # gathered again by megatron-core, which then sums the gradients
            return q_compressed, scatter_to_sequence_parallel_region(kv)
        latent, rotary_key = torch.split(kv, sizes, dim=-1)
        return q_compressed, torch.cat([latent, copy_to_tensor_model_parallel_region(rotary_key)], dim=-1)
