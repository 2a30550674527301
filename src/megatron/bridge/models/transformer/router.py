"""A router that can choose experts in ways that megatron-core lacks."""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping, compute_routing_scores_for_aux_loss
from megatron.core.transformer.moe.router import TopKRouter

from megatron.bridge.models.transformer.decoder_config import DecoderConfig

# T tokens, E experts, G groups of experts, K experts per token.


def needs_general_router(config: DecoderConfig) -> bool:
    """Whether the config asks for something that megatron-core's router cannot do."""
    return (
        config.moe_router_renormalize is not None
        or config.moe_router_group_score is not None
        or config.moe_router_softmax_expert_bias
    )


class GeneralTopKRouter(TopKRouter):
    """megatron-core's top-k router, with a choice where it has a fixed rule.

    - `moe_router_renormalize`: whether the K scores are divided by their sum (megatron-core: always for sigmoid,
      never for softmax over all experts), to which `moe_router_epsilon` is added;
    - `moe_router_group_score`: the score that a group of experts is chosen by: "top2_sum", the sum of its two best
      scores (DeepSeek-V3), or "max", its best score (DeepSeek-V2); megatron-core sums the best K / (number of chosen
      groups);
    - `moe_router_softmax_expert_bias`: a bias that is added to softmax scores for the choice alone (Ernie 4.5).
    """

    config: DecoderConfig
    num_experts: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.moe_router_softmax_expert_bias:
            # It is not updated in training, because megatron-core's update rule is made for sigmoid scores.
            del self.expert_bias
            self.register_buffer("expert_bias", torch.zeros(self.num_experts, dtype=torch.float32))

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and choice of experts, both `[T, E]`. All steps but the choice itself are megatron-core's."""
        seq_length, batch_size = logits.shape[:2]
        logits = logits.view(-1, self.num_experts)
        if padding_mask is not None:
            padding_mask = padding_mask.reshape(-1)
        has_padding = padding_mask is not None
        logits = self.apply_z_loss(logits, padding_mask=padding_mask)
        probs, routing_map = self._choose(logits)
        config = self.config
        if config.moe_expert_capacity_factor is not None:
            probs, routing_map = apply_router_token_dropping(
                probs,
                routing_map,
                router_topk=self.topk,
                capacity_factor=config.moe_expert_capacity_factor,
                drop_policy=config.moe_token_drop_policy,
                pad_to_capacity=config.moe_pad_expert_input_to_capacity,
            )
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            chosen, scores = compute_routing_scores_for_aux_loss(
                logits, self.topk, self.score_function, fused=config.moe_router_fusion, padding_mask=padding_mask
            )
            probs = self._apply_aux_loss(probs, scores, chosen, with_padding_mask=has_padding)
            probs = self._apply_seq_aux_loss(
                probs, scores, chosen, seq_length, batch_size, with_padding_mask=has_padding
            )
            probs = self._apply_global_aux_loss(probs, scores, chosen, with_padding_mask=has_padding)
        self._apply_expert_bias(routing_map, padding_mask=padding_mask)
        return probs, routing_map

    def _choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        is_sigmoid = self.score_function == "sigmoid"
        scores = torch.sigmoid(logits.float()) if is_sigmoid else torch.softmax(logits, dim=-1, dtype=torch.float32)
        selection = scores if self.expert_bias is None else scores + self.expert_bias.float()
        if config.moe_router_group_topk:
            assert config.moe_router_num_groups is not None
            selection = mask_groups(
                selection,
                config.moe_router_num_groups,
                config.moe_router_group_topk,
                config.moe_router_group_score or "top2_sum",
            )
        indices = selection.topk(self.topk, dim=-1).indices
        weights = scores.gather(1, indices)
        renormalize = is_sigmoid if config.moe_router_renormalize is None else config.moe_router_renormalize
        if renormalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + config.moe_router_epsilon)
        weights = weights * (config.moe_router_topk_scaling_factor or 1.0)
        probs = torch.zeros_like(logits).scatter(1, indices, weights.type_as(logits))
        return probs, torch.zeros_like(logits, dtype=torch.bool).scatter(1, indices, True)


def mask_groups(scores: torch.Tensor, num_groups: int, num_chosen: int, group_score: str) -> torch.Tensor:
    """Scores `[T, E]`, set to minus infinity outside the `num_chosen` best of `num_groups` groups of experts.

    With 4 experts in 2 groups, of which 1 is chosen by "max", scores of 1, 2, 3, 0 become -inf, -inf, 3, 0.

    Args:
        group_score: what groups are compared by: "top2_sum" or "max".

    Source: arXiv 2405.04434 (max), arXiv 2412.19437 (sum of the best two).
    """
    grouped = scores.view(len(scores), num_groups, -1)
    num_best = {"top2_sum": 2, "max": 1}[group_score]
    best = grouped.topk(num_best, dim=-1).values.sum(dim=-1).topk(num_chosen, dim=-1).indices
    is_outside = torch.ones(best.shape[0], num_groups, dtype=torch.bool, device=scores.device).scatter(1, best, False)
    return grouped.masked_fill(is_outside[..., None], float("-inf")).view_as(scores)
