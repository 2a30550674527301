"""Mixtures of experts: which layers have experts, how wide they are, and how the router chooses."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Parts, Provider, Values, defaults, same

# HF field -> the provider field with the same value.
_FIELDS = {
    "num_experts": "num_moe_experts",
    "num_experts_per_tok": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "router_aux_loss_coef": "moe_aux_loss_coeff",
}
# Provider fields of every mixture of experts. Where fused kernels cannot run, they are switched off.
MOE_DEFAULTS: dict[str, object] = {
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_load_balancing_type": "aux_loss",
    "moe_grouped_gemm": True,
}


def experts(**hf_names: str | None) -> Part:
    """The sizes of a mixture of experts, and the fields that all mixtures have in common.

    Args:
        hf_names: for each of the HF fields `num_experts`, `num_experts_per_tok`, `moe_intermediate_size` and
            `router_aux_loss_coef` with another name, that name; `None` if the config class lacks the field.

    Example:
        >>> experts(num_experts="num_local_experts", router_aux_loss_coef=None).same["num_local_experts"]
        'num_moe_experts'
    """
    names = {hf_names.get(name, name): field for name, field in _FIELDS.items()}
    return Part(
        same={name: field for name, field in names.items() if name is not None},
        irrelevant={"output_router_logits": "what the HF model returns"},
        defaults=MOE_DEFAULTS,
    )


# Experts in every layer, as wide as `intermediate_size` says (Mixtral).
LOCAL_EXPERTS = experts(num_experts="num_local_experts", moe_intermediate_size="intermediate_size")
# The router's scores are in fp32, whatever the model's dtype.
ROUTER_IN_FP32 = defaults(moe_router_dtype="fp32")


def moe_layer_freq(is_moe: list[bool]) -> int | list[int]:
    """megatron-core's field for which layers have experts. A list gives each layer checkpoint keys of its own."""
    return 1 if all(is_moe) else [int(moe) for moe in is_moe]


def moe_layers(provider: Provider) -> list[bool]:
    """The inverse of `moe_layer_freq`: whether each layer has experts."""
    freq = provider.moe_layer_freq
    if isinstance(freq, int):
        return [layer % freq == 0 for layer in range(provider.num_layers)]
    return [bool(moe) for moe in freq]


# Routers


def softmax_router_fields(renormalize: bool, topk: int) -> Values:
    """The provider fields of a softmax router.

    Args:
        renormalize: whether the scores of the chosen experts are divided by their sum, which equals the softmax over
            the chosen experts alone. megatron-core refuses that softmax for a single expert.
    """
    if renormalize and topk == 1:
        return {"moe_router_pre_softmax": True, "moe_router_renormalize": True}
    return {"moe_router_pre_softmax": not renormalize}


def _is_renormalized(provider: Provider) -> Values:
    return {"norm_topk_prob": bool(provider.moe_router_renormalize) or not provider.moe_router_pre_softmax}


# A softmax over all experts, or over the chosen ones.
SOFTMAX_ROUTER = Part(
    reads=("norm_topk_prob",),
    to_provider=lambda config: softmax_router_fields(config.norm_topk_prob, config.num_experts_per_tok),
    to_hf=_is_renormalized,
)


def _grouped_sigmoid_fields(hf_config: HFConfig) -> Values:
    """The provider fields of DeepSeek-V3's router: sigmoid scores, groups of experts, and a bias used to choose them.

    megatron-core's own router is used wherever it computes the same. It rates a group by its best K / topk_group
    scores, HF by its best two; and it always divides by the sum of the scores, unless there is only one.
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


def _grouped_sigmoid_values(provider: Provider) -> Values:
    renormalize = provider.moe_router_renormalize
    return {
        "n_group": provider.moe_router_num_groups or 1,
        "topk_group": provider.moe_router_group_topk or 1,
        "norm_topk_prob": provider.moe_router_topk > 1 if renormalize is None else renormalize,
    }


GROUPED_SIGMOID_ROUTER = Part(
    reads=("n_group", "topk_group", "norm_topk_prob"),
    to_provider=_grouped_sigmoid_fields,
    to_hf=_grouped_sigmoid_values,
)


def _group_limited_fields(hf_config: HFConfig) -> Values:
    if hf_config.topk_method == "greedy":
        return {}
    return {
        "moe_router_num_groups": hf_config.n_group,
        "moe_router_group_topk": hf_config.topk_group,
        "moe_router_group_score": "max",
    }


def _group_limited_values(provider: Provider) -> Values:
    return {
        "topk_method": "group_limited_greedy" if provider.moe_router_num_groups else "greedy",
        "n_group": provider.moe_router_num_groups,
        "topk_group": provider.moe_router_group_topk,
    }


# DeepSeek-V2's router: the best experts of all, or of the groups that have the best experts.
GROUP_LIMITED_ROUTER = Part(
    reads=("topk_method", "n_group", "topk_group"), to_provider=_group_limited_fields, to_hf=_group_limited_values
)
# How routers that choose experts with a bias are trained: the bias balances the experts over batches, the loss only
# within each sequence (arXiv 2412.19437, section 4.2).
BIASED_ROUTER = defaults(moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=1e-4)


# Layers with experts


def _sparse_step_fields(hf_config: HFConfig) -> Values:
    step, dense = hf_config.decoder_sparse_step, hf_config.mlp_only_layers
    is_moe = [layer not in dense and (layer + 1) % step == 0 for layer in range(hf_config.num_hidden_layers)]
    router = softmax_router_fields(hf_config.norm_topk_prob, hf_config.num_experts_per_tok)
    return {**router, "moe_layer_freq": moe_layer_freq(is_moe)}


def _sparse_step_values(provider: Provider) -> Values:
    dense = [layer for layer, moe in enumerate(moe_layers(provider)) if not moe]
    return {**_is_renormalized(provider), "decoder_sparse_step": 1, "mlp_only_layers": dense}


# Qwen's mixtures: which layers have experts, and whether the softmax comes before or after the choice.
SPARSE_STEPS = Part(
    reads=("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"),
    irrelevant={"num_local_experts": "another name of num_experts"},
    to_provider=_sparse_step_fields,
    to_hf=_sparse_step_values,
)


def _spaced_fields(hf_config: HFConfig) -> Values:
    first, last, step = (getattr(hf_config, f"moe_layer_{name}") for name in ("start_index", "end_index", "interval"))
    layers, num_shared = range(hf_config.num_hidden_layers), hf_config.moe_num_shared_experts
    return {
        "moe_layer_freq": moe_layer_freq([first <= layer <= last and (layer + 1) % step == 0 for layer in layers]),
        "moe_shared_expert_intermediate_size": num_shared * hf_config.moe_intermediate_size or None,
    }


def _spaced_values(provider: Provider) -> Values:
    layers = [layer for layer, is_moe in enumerate(moe_layers(provider)) if is_moe]
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    if layers != [i for i in range(layers[0], layers[-1] + 1) if (i + 1) % step == 0]:
        raise UnsupportedConfigError(
            f"moe_layer_freq {provider.moe_layer_freq}: layers with experts must be evenly spaced"
        )
    return {
        "moe_layer_start_index": layers[0],
        "moe_layer_end_index": layers[-1],
        "moe_layer_interval": step,
        "moe_num_shared_experts": (provider.moe_shared_expert_intermediate_size or 0) // provider.moe_ffn_hidden_size,
    }


# ERNIE's mixtures: from a first to a last layer, one in every so many has experts.
SPACED_EXPERT_LAYERS = Part(
    reads=("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "moe_num_shared_experts"),
    to_provider=_spaced_fields,
    to_hf=_spaced_values,
)


def _expert_layer_fields(hf_config: HFConfig) -> Values:
    """From `mlp_layer_types`, `num_dense_layers` or `first_k_dense_replace`, and the number of shared experts."""
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


def expert_layers(*reads: str) -> Part:
    """Which layers have experts, and how wide the shared expert is.

    Args:
        reads: the config class's fields for this: `first_k_dense_replace`, `num_dense_layers` or `mlp_layer_types`;
            and `n_shared_experts` or `num_shared_experts`, if it has one of them.
    """

    def to_hf(provider: Provider) -> Values:
        is_moe = moe_layers(provider)
        num_dense = is_moe.index(True) if True in is_moe else len(is_moe)
        if not all(is_moe[num_dense:]) and "mlp_layer_types" not in reads:
            freq = provider.moe_layer_freq
            raise UnsupportedConfigError(f"moe_layer_freq {freq}: the HF config can only have dense layers in front")
        num_shared = (provider.moe_shared_expert_intermediate_size or 0) // provider.moe_ffn_hidden_size
        return {
            "first_k_dense_replace": num_dense,
            "num_dense_layers": num_dense,
            "mlp_layer_types": ["sparse" if moe else "dense" for moe in is_moe],
            "n_shared_experts": num_shared,
            "num_shared_experts": num_shared,
        }

    return Part(reads=reads, to_provider=_expert_layer_fields, to_hf=to_hf)


EXPERT_LAYERS = expert_layers("first_k_dense_replace", "n_shared_experts")


def biased_experts(**hf_names: str | None) -> Parts:
    """Experts chosen by a router with a bias.

    Args:
        hf_names: see `experts`.
    """
    names = {"router_aux_loss_coef": None, **hf_names}
    return (experts(**names), same(routed_scaling_factor="moe_router_topk_scaling_factor"), BIASED_ROUTER)


# The sizes of DeepSeek's mixtures; and all of DeepSeek-V3's mixture: its router, first dense layers and shared experts.
DEEPSEEK_SIZES = biased_experts(num_experts="n_routed_experts")
DEEPSEEK_EXPERTS: Parts = (*DEEPSEEK_SIZES, EXPERT_LAYERS, GROUPED_SIGMOID_ROUTER)
