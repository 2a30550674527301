"""The config fields of mixtures of experts, from Hugging Face and back: what the families share."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    from collections.abc import Container

    from transformers import PretrainedConfig

# HF field -> provider field of mixtures of experts, in addition to `config_mapping.DECODER_FIELDS`.
MOE_FIELDS = {
    "num_experts": "num_moe_experts",
    "num_experts_per_tok": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "router_aux_loss_coef": "moe_aux_loss_coeff",
}

# Provider fields that every mixture of experts has. Fused kernels are switched off where they cannot run.
MOE_DEFAULTS: dict[str, Any] = {
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_load_balancing_type": "aux_loss",
    "moe_grouped_gemm": True,
}


def moe_layer_freq(is_moe: list[bool]) -> int | list[int]:
    """megatron-core's field for which layers have experts; a list makes each layer's checkpoint keys its own."""
    return 1 if all(is_moe) else [int(moe) for moe in is_moe]


def softmax_router_fields(renormalize: bool, topk: int) -> dict[str, Any]:
    """The provider fields of a softmax router.

    Args:
        renormalize: whether the scores of the chosen experts are divided by their sum, which is the same as the softmax
            of the chosen experts alone. megatron-core refuses that for a single expert.
    """
    if renormalize and topk == 1:
        return {"moe_router_pre_softmax": True, "moe_router_renormalize": True}
    return {"moe_router_pre_softmax": not renormalize}


def is_renormalized(provider: Any) -> bool:
    """The inverse of `softmax_router_fields`."""
    return bool(provider.moe_router_renormalize) or not provider.moe_router_pre_softmax


# HF fields that `sparse_step_fields` reads.
SPARSE_STEP_FIELDS = ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")


def sparse_step_fields(hf_config: "PretrainedConfig") -> dict[str, Any]:
    """The provider fields of Qwen's mixtures: which layers have experts, and when the softmax is taken."""
    step, dense = hf_config.decoder_sparse_step, hf_config.mlp_only_layers
    is_moe = [layer not in dense and (layer + 1) % step == 0 for layer in range(hf_config.num_hidden_layers)]
    return {
        **softmax_router_fields(hf_config.norm_topk_prob, hf_config.num_experts_per_tok),
        "moe_layer_freq": moe_layer_freq(is_moe),
    }


def sparse_step_values(provider: Any) -> dict[str, Any]:
    """The inverse of `sparse_step_fields`."""
    freq = provider.moe_layer_freq
    return {
        "norm_topk_prob": is_renormalized(provider),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [] if isinstance(freq, int) else [layer for layer, moe in enumerate(freq) if not moe],
    }


# HF field -> provider field of DeepSeek's mixtures, whose config classes do not use the usual names.
DEEPSEEK_FIELDS = {
    "num_experts_per_tok": "moe_router_topk",
    "n_routed_experts": "num_moe_experts",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "routed_scaling_factor": "moe_router_topk_scaling_factor",
}

# HF fields that `expert_layer_fields` and `grouped_sigmoid_fields` read.
EXPERT_LAYER_FIELDS = ("first_k_dense_replace", "n_shared_experts")
GROUPED_SIGMOID_FIELDS = ("n_group", "topk_group", "norm_topk_prob")

# Provider fields of routers with a bias for the choice, as trained: the bias balances the experts over batches, the
# loss only within each sequence (arXiv 2412.19437, section 4.2).
BIASED_ROUTER_DEFAULTS = {**MOE_DEFAULTS, "moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": 1e-4}


def expert_layer_fields(hf_config: "PretrainedConfig") -> dict[str, Any]:
    """The provider fields for which layers have experts, and for the width of the shared expert.

    Reads `mlp_layer_types`, or `first_k_dense_replace` or `num_dense_layers`, and `n_shared_experts` or
    `num_shared_experts`.
    """
    kinds = getattr(hf_config, "mlp_layer_types", None)
    if kinds is None:
        num_dense = getattr(hf_config, "num_dense_layers", None)
        num_dense = hf_config.first_k_dense_replace if num_dense is None else num_dense
        is_moe = [layer >= num_dense for layer in range(hf_config.num_hidden_layers)]
    else:
        is_moe = [kind == "sparse" for kind in kinds]
    num_shared = getattr(hf_config, "n_shared_experts", None) or getattr(hf_config, "num_shared_experts", None)
    return {
        "moe_layer_freq": moe_layer_freq(is_moe),
        "moe_shared_expert_intermediate_size": num_shared * hf_config.moe_intermediate_size if num_shared else None,
    }


def expert_layer_values(provider: Any, known: "Container[str]") -> dict[str, Any]:
    """The inverse of `expert_layer_fields`, for those HF fields that are `known`.

    Raises:
        UnsupportedConfigError: dense layers in another place than in front, and no HF field that could say so.
    """
    freq = provider.moe_layer_freq
    freq = [1] * provider.num_layers if isinstance(freq, int) else freq
    num_dense = freq.index(1) if 1 in freq else len(freq)
    if not all(freq[num_dense:]) and "mlp_layer_types" not in known:
        raise UnsupportedConfigError(f"moe_layer_freq {freq}: the HF config can only have dense layers in front")
    num_shared = (provider.moe_shared_expert_intermediate_size or 0) // provider.moe_ffn_hidden_size
    values = {
        "first_k_dense_replace": num_dense,
        "num_dense_layers": num_dense,
        "mlp_layer_types": ["sparse" if moe else "dense" for moe in freq],
        "n_shared_experts": num_shared,
        "num_shared_experts": num_shared,
    }
    return {name: value for name, value in values.items() if name in known}


def mtp_fields(hf_config: "PretrainedConfig") -> dict[str, Any]:
    """The provider field of multi-token prediction (`num_nextn_predict_layers`, which some config classes lack)."""
    return {"mtp_num_layers": getattr(hf_config, "num_nextn_predict_layers", None) or None}


def mtp_values(provider: Any) -> dict[str, Any]:
    """The inverse of `mtp_fields`."""
    return {"num_nextn_predict_layers": provider.mtp_num_layers or 0}


def grouped_sigmoid_fields(hf_config: "PretrainedConfig") -> dict[str, Any]:
    """The provider fields of DeepSeek-V3's router: sigmoid scores, a bias for the choice, groups of experts.

    megatron-core's own router is chosen where it computes the same: it takes the best K / topk_group scores of a group
    where HF takes the best two, and always divides by the sum of the scores (but not of a single one).
    """
    topk, num_groups, num_chosen = hf_config.num_experts_per_tok, hf_config.n_group, hf_config.topk_group
    is_grouped = num_groups > 1
    is_limited = is_grouped and num_chosen < num_groups
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_dtype": "fp32",
        "moe_router_num_groups": num_groups if is_grouped else None,
        "moe_router_group_topk": num_chosen if is_grouped else None,
        "moe_router_group_score": "top2_sum" if is_limited and topk // num_chosen != 2 else None,
        "moe_router_renormalize": None if hf_config.norm_topk_prob == (topk > 1) else hf_config.norm_topk_prob,
    }


def grouped_sigmoid_values(provider: Any) -> dict[str, Any]:
    """The inverse of `grouped_sigmoid_fields`."""
    renormalize = provider.moe_router_renormalize
    return {
        "n_group": provider.moe_router_num_groups or 1,
        "topk_group": provider.moe_router_group_topk or 1,
        "norm_topk_prob": provider.moe_router_topk > 1 if renormalize is None else renormalize,
    }
