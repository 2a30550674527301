"""What a config says about a model, by subject; each value comes with the level of the config that states it."""

from collections import Counter
from collections.abc import Mapping

from megatron.bridge.discovery.config_levels import Fact, LeveledConfig

# The fields of the text model that are shown, by subject, under the names that published configs use.
TEXT_FIELDS: dict[str, tuple[str, ...]] = {
    "size": (
        "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings",
        "hidden_act", "dtype",
    ),
    "attention": (
        "num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "use_qk_norm", "sliding_window",
        "use_sliding_window", "layer_types", "attention_chunk_size", "no_rope_layers", "attn_logit_softcapping",
        "final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier", "num_kv_shared_layers",
        "num_global_key_value_heads", "global_head_dim", "swa_num_key_value_heads", "attn_output_gate",
    ),
    "MLA": (
        "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "index_topk", "index_n_heads", "index_head_dim", "indexer_types",
    ),
    "MoE": (
        "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts",
        "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token",
        "moe_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
        "shared_expert_intermediate_size", "first_k_dense_replace", "moe_layer_freq", "decoder_sparse_step",
        "mlp_only_layers", "mlp_layer_types", "n_group", "topk_group", "topk_method", "scoring_func",
        "norm_topk_prob", "routed_scaling_factor", "router_aux_loss_coef",
    ),
    "MTP": ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_layers_block_type"),
    "linear attention": (
        "full_attention_interval", "linear_conv_kernel_dim", "linear_num_key_heads", "linear_num_value_heads",
        "linear_key_head_dim", "linear_value_head_dim", "layers_block_type", "hybrid_override_pattern",
        "mamba_num_heads", "mamba_n_heads", "mamba_head_dim", "mamba_d_head", "mamba_d_state", "mamba_n_groups",
        "ssm_state_size", "state_size", "n_groups", "conv_kernel", "conv_L_cache", "chunk_size",
    ),
    "rope": (
        "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq",
        "rope_interleave", "use_rope",
    ),
}  # fmt: skip
VISION_FIELDS = (
    "model_type", "num_hidden_layers", "depth", "hidden_size", "embed_dim", "num_heads", "num_attention_heads",
    "intermediate_size", "patch_size", "image_size", "spatial_merge_size", "temporal_patch_size",
    "out_hidden_size", "deepstack_visual_indexes",
)  # fmt: skip
TOP_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id", "mm_tokens_per_image")

_LARGEST = 10**10
_MOST_LAYERS = 10_000
_LINEAR_KINDS = {"linear_attention", "mamba", "conv", "hybrid"}


def facts_by_subject(config: LeveledConfig) -> dict[str, list[Fact]]:
    """The fields that the config states or that its class has as defaults, by subject; empty subjects are left out.

    Beyond sizes, attention and rope, defaults alone make no subject: a class that allows experts does not mean that the
    model has any.
    """
    subjects: dict[str, list[Fact]] = {}
    if config.text_level is not None:
        for subject, names in TEXT_FIELDS.items():
            read = [fact for name in names if (fact := config.text(name)) is not None and fact.value != []]
            facts = list({fact.name: fact for fact in read}.values())
            if subject == "rope":
                facts = [fact for fact in facts if not (fact.name == "rope_scaling" and is_default(fact))]
            if subject == "rope" and any(fact.name in ("rope_theta", "rope_scaling") for fact in facts):
                facts = [fact for fact in facts if not (fact.name == "rope_parameters" and is_default(fact))]
            if subject in ("size", "attention", "rope") or any(not is_default(fact) and fact.value for fact in facts):
                subjects[subject] = facts
    if config.vision_level is not None:
        subjects["vision"] = [fact for name in VISION_FIELDS if (fact := config.vision(name)) is not None]
        named = {fact.name: fact for name in TOP_FIELDS if (fact := config.top(name)) is not None}
        subjects["vision"] += [fact for fact in named.values() if not is_default(fact)]
    return {subject: facts for subject, facts in subjects.items() if facts}


def is_default(fact: Fact) -> bool:
    """Whether a value is a default of transformers' class, which the config does not state."""
    return fact.level.startswith("default of ")


def number(config: LeveledConfig, *names: str) -> int:
    """The first of several fields of the text model that is a plausible size other than 0; 0 if none is."""
    return next((size for name in names if (fact := config.text(name)) and (size := as_size(fact.value))), 0)


def as_size(value: object) -> int:
    """The value if it is a whole number that a model may have as a size, else 0."""
    return value if type(value) is int and 0 <= value <= _LARGEST else 0


def listed(config: LeveledConfig, name: str) -> list[object] | None:
    """A field of the text model that is a list, or `None`."""
    fact = config.text(name)
    return fact.value if fact is not None and isinstance(fact.value, list) else None


def num_layers(config: LeveledConfig) -> int:
    """The number of decoder layers."""
    count = number(config, "num_hidden_layers", "n_layer") or len(listed(config, "layers_block_type") or ())
    return count if count <= _MOST_LAYERS else 0


def head_dim(config: LeveledConfig) -> int:
    """The dimensions of each head: as stated, or the hidden size divided by the number of heads."""
    return number(config, "head_dim") or number(config, "hidden_size") // (number(config, "num_attention_heads") or 1)


def summaries(config: LeveledConfig, fields: Mapping[str, object]) -> dict[str, str]:
    """One sentence per subject.

    Args:
        fields: the provider's, as the family reads them from the config.
    """
    if config.text_level is None:
        return {}
    sentences = {
        "attention": _attention(config, fields),
        "MoE": _experts(config, fields),
        "MTP": _prediction(fields),
        "linear attention": _linear(config, fields),
        "rope": _rope(config),
    }
    return {subject: sentence for subject, sentence in sentences.items() if sentence}


def _attention(config: LeveledConfig, fields: Mapping[str, object]) -> str:
    heads = number(config, "num_attention_heads")
    if not heads:
        return "none" if num_layers(config) else ""
    if kv_rank := number(config, "kv_lora_rank"):
        q_rank, topk = number(config, "q_lora_rank"), number(config, "index_topk")
        queries = f"queries from a latent of size {q_rank}" if q_rank else "queries from one projection"
        values = f"keys and values from {'one' if q_rank else 'a latent'} of size {kv_rank}"
        sparse = f"; sparse, {topk} keys per query" if topk else ""
        return f"multi-latent (MLA): {heads} heads, {queries}, {values}{sparse}"
    groups = number(config, "num_key_value_heads") or heads
    kind = "multi-head" if groups == heads else "multi-query" if groups == 1 else "grouped-query"
    sentence = f"{kind}: {heads} heads of size {head_dim(config)}"
    sentence += "" if groups == heads else f", {groups} for keys and values"
    counts = Counter(map(str, listed(config, "layer_types") or ()))
    if len(counts) > 1 and not _linear(config, fields):
        sentence += f"; {_layer_kinds(counts)}"
    window = number(config, "sliding_window")
    switch = config.text("use_sliding_window")
    if window and (switch is None or switch.value):
        sentence += f"; window of {window}"
    return sentence


def _layer_kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} layer{'s' * (n > 1)} of {kind.replace('_', ' ')}" for kind, n in counts.items())


def _experts(config: LeveledConfig, fields: Mapping[str, object]) -> str:
    experts, chosen, width, dense_width = (
        as_size(fields.get(name))
        for name in ("num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size", "ffn_hidden_size")
    )
    if not experts:
        return ""
    shared = number(config, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    sentence = f"{experts} experts of width {width or dense_width}, {chosen or '?'} per token"
    if shared or number(config, "shared_expert_intermediate_size"):
        sentence += f", plus {shared or 1} shared"
    if dense := number(config, "first_k_dense_replace"):
        sentence += f"; no experts in the first {f'{dense} layers' if dense > 1 else 'layer'}"
    return sentence


def _prediction(fields: Mapping[str, object]) -> str:
    count = as_size(fields.get("mtp_num_layers"))
    return f"{count} multi-token prediction layer{'s' if count > 1 else ''}" if count else ""


def _linear(config: LeveledConfig, fields: Mapping[str, object]) -> str:
    kinds = listed(config, "layers_block_type") or listed(config, "layer_types")
    if kinds is not None:
        counts = Counter(map(str, kinds))
        if counts.keys() & _LINEAR_KINDS:
            return _layer_kinds(counts)
    heads, state = as_size(fields.get("mamba_num_heads")), as_size(fields.get("mamba_state_dim"))
    return f"Mamba: {heads} heads, state of size {state}" if heads and state else ""


def _rope(config: LeveledConfig) -> str:
    fact = config.text("rope_parameters")
    parameters = fact.value if fact is not None else None
    if not isinstance(parameters, Mapping) or not parameters:
        theta, scaling = config.text("rope_theta"), config.text("rope_scaling")
        if theta is None and scaling is None:
            return ""
        scaled = scaling.value if scaling is not None and isinstance(scaling.value, Mapping) else {}
        parameters = {**({"rope_theta": theta.value} if theta else {}), **scaled}
    elif config.text_config is not None:  # transformers puts older names into it
        parameters = getattr(config.text_config, "rope_parameters", None) or parameters
    if parameters and all(isinstance(part, Mapping) for part in parameters.values()):
        return "; ".join(f"{kind.replace('_', ' ')}: {_one_rope(part)}" for kind, part in parameters.items())
    return _one_rope(parameters)


def _one_rope(parameters: Mapping[str, object]) -> str:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    labels = {
        "rope_theta": "theta",
        "factor": "factor",
        "partial_rotary_factor": "rotary part",
        "mrope_section": "sections",
    }
    details = [f"{label} {parameters[name]}" for name, label in labels.items() if parameters.get(name) is not None]
    return f"{kind}, {', '.join(details)}" if details else str(kind)
