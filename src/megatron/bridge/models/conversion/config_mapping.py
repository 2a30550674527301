"""From a Hugging Face config to the fields of a provider, and back: what the families share.

Every field of an HF config is either mapped to a provider field, read by a function of this module or of the family,
or declared irrelevant with a reason. A field that nobody knows is an error, because it may change the computation.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# HF field -> provider field, for decoder-only transformers. The values are the same on both sides.
DECODER_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
    "initializer_range": "init_method_std",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "rope_parameters": "rope_parameters",
}

# Fields that do not change what a forward pass computes.
IRRELEVANT_FIELDS = {
    "transformers_version": "which version wrote the file",
    "architectures": "read to choose the bridge",
    "model_type": "read to choose the config class",
    "_name_or_path": "where the config came from",
    "name_or_path": "where the config came from",
    "auto_map": "read by transformers to find remote code",
    "dtype": "read as the dtype of the weights",
    "torch_dtype": "read as the dtype of the weights",
    "bos_token_id": "generation",
    "eos_token_id": "generation",
    "pad_token_id": "generation",
    "use_cache": "generation",
    "output_hidden_states": "what the HF model returns",
    "output_attentions": "what the HF model returns",
    "return_dict": "what the HF model returns",
    "id2label": "classification heads",
    "label2id": "classification heads",
    "problem_type": "classification heads",
    "chunk_size_feed_forward": "memory saving of the HF model",
    "pretraining_tp": "transformers 5 no longer reads it",
    "max_window_layers": "transformers turns it into layer_types",
    "_attn_implementation": "kernel choice of the HF model",
    "_attn_implementation_autoset": "kernel choice of the HF model",
    "unsloth_version": "which tool wrote the file",
    "unsloth_fixed": "which tool wrote the file",
    "transformers.js_config": "another runtime's settings",
    "is_llama_config": "another runtime's settings",
}

# Fields that must have the value with which transformers' models of this kind are computed.
FIXED_FIELDS: dict[str, Any] = {
    "is_encoder_decoder": False,
    "rope_interleaved": False,
}


@cache
def _activations() -> dict[str, Any]:
    import torch.nn.functional as F
    from megatron.core.activations import quick_gelu, squared_relu

    return {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "relu": F.relu,
        "relu2": squared_relu,
        "quick_gelu": quick_gelu,
    }


def activation_function(name: str, where: str) -> Any:
    """The function of an HF activation name.

    Raises:
        UnsupportedConfigError: a name with no exact counterpart.
    """
    if name not in _activations():
        raise UnsupportedConfigError(
            f"{where}: hidden_act {name!r} is not supported; supported: {', '.join(sorted(_activations()))}"
        )
    return _activations()[name]


def activation_name(function: Any) -> str:
    """The HF name of an activation function."""
    for name, known in _activations().items():
        if known is function:
            return name
    raise UnsupportedConfigError(f"activation function {function!r} has no Hugging Face name")


def mapped_fields(hf_config: "PretrainedConfig", mapping: Mapping[str, str]) -> dict[str, Any]:
    """The provider fields that equal an HF field. A field that is `None` keeps the provider's default."""
    fields = {name: getattr(hf_config, name, None) for name in mapping}
    return {mapping[name]: value for name, value in fields.items() if value is not None}


def rotary_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of a single rotary embedding for all layers.

    Raises:
        UnsupportedConfigError: no rope parameters, or parameters per kind of layer.
    """
    parameters = getattr(hf_config, "rope_parameters", None)
    if not parameters or "rope_theta" not in parameters:
        raise UnsupportedConfigError(
            f"{where}: rope_parameters must hold rope_theta for all layers, found {parameters!r}"
        )
    return {
        "position_embedding_type": "rope",
        "rotary_base": float(parameters["rope_theta"]),
        "rotary_percent": float(parameters.get("partial_rotary_factor", 1.0)),
        "rope_parameters": dict(parameters),
    }


# HF field -> provider field of mixtures of experts, in addition to `DECODER_FIELDS`.
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


# HF fields that `sparse_step_fields` reads.
SPARSE_STEP_FIELDS = ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")


def sparse_step_fields(hf_config: "PretrainedConfig") -> dict[str, Any]:
    """The provider fields of Qwen's mixtures: which layers have experts, and when the softmax is taken."""
    step, dense = hf_config.decoder_sparse_step, hf_config.mlp_only_layers
    is_moe = [layer not in dense and (layer + 1) % step == 0 for layer in range(hf_config.num_hidden_layers)]
    return {"moe_router_pre_softmax": not hf_config.norm_topk_prob, "moe_layer_freq": moe_layer_freq(is_moe)}


def sparse_step_values(provider: Any) -> dict[str, Any]:
    """The inverse of `sparse_step_fields`."""
    freq = provider.moe_layer_freq
    return {
        "norm_topk_prob": not provider.moe_router_pre_softmax,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [] if isinstance(freq, int) else [layer for layer, moe in enumerate(freq) if not moe],
    }


def first_dense_layers(moe_layer_freq: int | list[int]) -> int:
    """The number of layers in front of the first one with experts; inverse of a list of dense, then MoE layers."""
    return 0 if isinstance(moe_layer_freq, int) else moe_layer_freq.index(1)


# HF fields that `grouped_sigmoid_fields` reads.
GROUPED_SIGMOID_FIELDS = ("n_group", "topk_group", "norm_topk_prob")


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


# HF field -> provider field of multi-latent attention.
MLA_FIELDS = {
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "v_head_dim": "v_head_dim",
}


def mla_rotary_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of multi-latent attention's rotary embedding: default or YaRN.

    Raises:
        UnsupportedConfigError: another kind, or numbers that megatron-core's YaRN for MLA has no place for.
    """
    parameters = rotary_fields(hf_config, where)["rope_parameters"]
    fields = {"rotary_base": float(parameters["rope_theta"]), "rope_parameters": parameters}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        # megatron-core scales the softmax by the factor and mscale_all_dim even without YaRN.
        return {**fields, "rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    mscale, mscale_all_dim = parameters.get("mscale") or 0.0, parameters.get("mscale_all_dim") or 0.0
    is_exact = not mscale_all_dim or mscale  # otherwise HF scales cos and sin by a number that does not fit
    others = [parameters.get(name) for name in ("attention_factor", "truncate", "partial_rotary_factor")]
    if kind != "yarn" or not is_exact or any(value is not None for value in others):
        raise UnsupportedConfigError(
            f"{where}: rope_parameters {parameters!r} cannot be represented with multi-latent attention; expected "
            "rope_type default, or yarn with mscale if there is mscale_all_dim, and without "
            "attention_factor, truncate and partial_rotary_factor"
        )
    return {
        **fields,
        "rope_type": "yarn",
        "rotary_scaling_factor": float(parameters["factor"]),
        "original_max_position_embeddings": int(parameters["original_max_position_embeddings"]),
        "beta_fast": float(parameters.get("beta_fast") or 32),
        "beta_slow": float(parameters.get("beta_slow") or 1),
        # Without mscale_all_dim HF ignores mscale.
        "mscale": float(mscale) if mscale_all_dim else 1.0,
        "mscale_all_dim": float(mscale_all_dim),
    }


def sliding_window_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of sliding-window attention: HF window W sees W positions, Megatron's (W - 1, 0) likewise.

    Raises:
        UnsupportedConfigError: a kind of layer that is neither full nor sliding attention.
    """
    window = getattr(hf_config, "sliding_window", None)
    if window is None or not getattr(hf_config, "use_sliding_window", True):
        return {}
    fields: dict[str, Any] = {"window_size": (window - 1, 0)}
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types is None:
        return fields
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedConfigError(
            f"{where}: layer_types {unknown} are not supported; supported: full_attention, sliding_attention"
        )
    is_sliding = [kind == "sliding_attention" for kind in layer_types]
    if not any(is_sliding):
        return {}
    if not all(is_sliding):
        fields["window_attn_skip_freq"] = [int(sliding) for sliding in is_sliding]
    return fields


def sliding_window_values(provider: Any) -> dict[str, Any]:
    """The inverse of `sliding_window_fields`: all HF fields that describe a sliding window."""
    if provider.window_size is None:
        return {
            "sliding_window": None,
            "use_sliding_window": False,
            "layer_types": ["full_attention"] * provider.num_layers,
        }
    is_sliding = provider.window_attn_skip_freq or [1] * provider.num_layers
    return {
        "sliding_window": provider.window_size[0] + 1,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in is_sliding],
    }


def check_fields(
    hf_config: "PretrainedConfig", known: Iterable[str], where: str, fixed: Mapping[str, Any] | None = None
) -> None:
    """Raises `UnsupportedConfigError` naming every unknown field, and every fixed field with another value."""
    known = {*known, *IRRELEVANT_FIELDS}
    fixed = {**FIXED_FIELDS, **(fixed or {})}
    problems = []
    for name, value in hf_config.to_dict().items():
        if name in fixed:
            if value is not None and value != fixed[name]:
                problems.append(f"{name}: expected {fixed[name]!r}, found {value!r}")
        elif name not in known and value is not None:
            problems.append(f"{name} = {value!r}: unknown to this family")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedConfigError(
            f"{where}: the config asks for something that cannot be represented exactly:\n{lines}\n"
            "If a field does not change the computation (transformers ignores it too), remove it from config.json; "
            "otherwise the family needs to learn it."
        )
