"""What a config says about a model, by subject, each value with the level of the config that it stands at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from megatron.bridge.discovery.config_levels import Fact, LeveledConfig

NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
NUM_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")
_NUM_PREDICTED = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
# Fields of the text model by subject, under the names that published configs use.
TEXT_FIELDS: dict[str, tuple[str, ...]] = {
    "size": (
        *("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"),
        *("hidden_act", "dtype"),
    ),
    "attention": (
        *("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "use_qk_norm", "sliding_window"),
        *("use_sliding_window", "layer_types", "attention_chunk_size", "no_rope_layers", "attn_logit_softcapping"),
        *("final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier", "num_kv_shared_layers"),
        *("num_global_key_value_heads", "global_head_dim", "swa_num_key_value_heads", "attn_output_gate"),
    ),
    "MLA": (
        *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("index_topk", "index_n_heads", "index_head_dim", "indexer_types"),
    ),
    "MoE": (
        *(*NUM_EXPERTS, *NUM_CHOSEN),
        *("moe_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
        *("shared_expert_intermediate_size", "first_k_dense_replace", "moe_layer_freq", "decoder_sparse_step"),
        *("mlp_only_layers", "mlp_layer_types", "n_group", "topk_group", "topk_method", "scoring_func"),
        *("norm_topk_prob", "routed_scaling_factor", "router_aux_loss_coef"),
    ),
    "MTP": (*_NUM_PREDICTED, "mtp_layers_block_type"),
    "linear attention": (
        *("full_attention_interval", "linear_conv_kernel_dim", "linear_num_key_heads", "linear_num_value_heads"),
        *("linear_key_head_dim", "linear_value_head_dim", "layers_block_type", "hybrid_override_pattern"),
        *("mamba_num_heads", "mamba_n_heads", "mamba_head_dim", "mamba_d_head", "mamba_d_state", "mamba_n_groups"),
        *("ssm_state_size", "state_size", "n_groups", "conv_kernel", "conv_L_cache", "chunk_size"),
    ),
    "rope": (
        *("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq"),
        *("rope_interleave", "use_rope"),
    ),
}
VISION_FIELDS = (
    *("model_type", "num_hidden_layers", "depth", "hidden_size", "embed_dim", "num_heads", "num_attention_heads"),
    *("intermediate_size", "patch_size", "image_size", "spatial_merge_size", "temporal_patch_size"),
    *("out_hidden_size", "deepstack_visual_indexes"),
)
TOP_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id", "mm_tokens_per_image")

_LARGEST = 10**10
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
_LINEAR_KINDS = {"linear_attention", "mamba", "conv", "hybrid"}


def facts_by_subject(config: LeveledConfig) -> dict[str, list[Fact]]:
    """The facts that the config states, or that its class has as defaults, by subject; empty subjects are left out.

    A default counts only beside a stated field of the same subject: a class that may have experts says nothing about
    a model that has none.
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
    """Whether the config does not state a value, and transformers' class gives it."""
    return fact.level.startswith("default of ")


def number(config: LeveledConfig, *names: str) -> int:
    """The first of several fields of the text model that is a whole number from 0 up to any that exists, or 0."""
    for name in names:
        fact = config.text(name)
        if fact is not None and type(fact.value) is int and 0 <= fact.value <= _LARGEST:
            return fact.value
    return 0


def as_size(value: Any) -> int:
    """A value that is a whole number from 0 up to any that exists; 0 for any other."""
    return value if type(value) is int and 0 <= value <= _LARGEST else 0


def listed(config: LeveledConfig, name: str) -> list[Any] | None:
    """A field of the text model that is a list, or `None`."""
    fact = config.text(name)
    return fact.value if fact is not None and isinstance(fact.value, list) else None


def num_experts(config: LeveledConfig) -> int:
    """Routed experts of each layer that has any."""
    count = number(config, *NUM_EXPERTS)
    return count if count <= _MOST_EXPERTS else 0


def num_chosen_experts(config: LeveledConfig) -> int:
    """Routed experts that a token visits."""
    return number(config, *NUM_CHOSEN)


def num_predicted(config: LeveledConfig) -> int:
    """Multi-token prediction layers that the config counts."""
    return number(config, *_NUM_PREDICTED)


def num_layers(config: LeveledConfig) -> int:
    """Decoder layers."""
    count = number(config, "num_hidden_layers", "n_layer") or len(listed(config, "layers_block_type") or ())
    return count if count <= _MOST_LAYERS else 0


def head_dim(config: LeveledConfig) -> int:
    """Dimensions of each head: as stated, or the hidden size over the heads."""
    return number(config, "head_dim") or number(config, "hidden_size") // (number(config, "num_attention_heads") or 1)


def summaries(config: LeveledConfig) -> dict[str, str]:
    """One sentence per subject."""
    if config.text_level is None:
        return {}
    found = {
        "attention": _attention(config),
        "MoE": _experts(config),
        "MTP": _prediction(config),
        "linear attention": _linear(config),
        "rope": _rope(config),
    }
    return {subject: sentence for subject, sentence in found.items() if sentence}


def _attention(config: LeveledConfig) -> str:
    heads = number(config, "num_attention_heads")
    if not heads:
        return "none" if num_layers(config) else ""
    if number(config, "kv_lora_rank"):
        latent = number(config, "q_lora_rank")
        queries = f"queries from a latent of {latent}" if latent else "queries from one projection"
        sentence = (
            f"multi-latent (MLA): {heads} heads, {queries}, keys and values from one of "
            f"{number(config, 'kv_lora_rank')}"
        )
        return sentence + (f"; sparse, {number(config, 'index_topk')} keys" if number(config, "index_topk") else "")
    groups = number(config, "num_key_value_heads") or heads
    kind = "multi-head" if groups == heads else "multi-query" if groups == 1 else "grouped-query"
    sentence = f"{kind}: {heads} heads of {head_dim(config)}" + (
        "" if groups == heads else f", {groups} of keys and values"
    )
    counts = Counter(map(str, listed(config, "layer_types") or ()))
    if len(counts) > 1 and not _linear(config):
        sentence += "; " + ", ".join(f"{count} layers {kind.replace('_', ' ')}" for kind, count in counts.items())
    window = number(config, "sliding_window")
    uses = config.text("use_sliding_window")
    if window and (uses is None or uses.value):
        sentence += f"; window of {window}"
    return sentence


def _experts(config: LeveledConfig) -> str:
    experts = num_experts(config)
    if not experts:
        return ""
    chosen = num_chosen_experts(config)
    width = number(config, "moe_intermediate_size", "intermediate_size")
    shared = number(config, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    sentence = f"{experts} experts of width {width}, {chosen or '?'} for each token"
    if shared or number(config, "shared_expert_intermediate_size"):
        sentence += f", and {shared or 1} shared"
    if dense := number(config, "first_k_dense_replace"):
        sentence += f"; the first {dense} layer{'s' if dense > 1 else ''} without experts"
    return sentence


def _prediction(config: LeveledConfig) -> str:
    count = num_predicted(config)
    return f"{count} multi-token prediction layer{'s' if count > 1 else ''}" if count else ""


def _linear(config: LeveledConfig) -> str:
    kinds = listed(config, "layers_block_type") or listed(config, "layer_types")
    if kinds is not None:
        counts = Counter(map(str, kinds))
        if counts.keys() & _LINEAR_KINDS:
            return ", ".join(f"{n} layers {kind.replace('_', ' ')}" for kind, n in counts.items())
    heads = number(config, "mamba_num_heads", "mamba_n_heads", "num_heads")
    state = number(config, "ssm_state_size", "mamba_d_state", "state_size")
    return f"Mamba: {heads} heads, state of {state}" if heads and state else ""


def _rope(config: LeveledConfig) -> str:
    fact = config.text("rope_parameters")
    found = fact.value if fact is not None else None
    if not isinstance(found, Mapping) or not found:
        theta, scaling = config.text("rope_theta"), config.text("rope_scaling")
        if theta is None and scaling is None:
            return ""
        scaled = scaling.value if scaling is not None and isinstance(scaling.value, Mapping) else {}
        found = {**({"rope_theta": theta.value} if theta else {}), **scaled}
    elif config.loaded is not None and config.text_config is not None:  # transformers puts older names into it
        found = getattr(config.text_config, "rope_parameters", None) or found
    if found and all(isinstance(part, Mapping) for part in found.values()):
        return "; ".join(f"{kind.replace('_', ' ')}: {_one_rope(part)}" for kind, part in found.items())
    return _one_rope(found)


def _one_rope(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    shown = {"rope_theta": "theta", "factor": "factor", "partial_rotary_factor": "part", "mrope_section": "sections"}
    details = [f"{label} {parameters[name]}" for name, label in shown.items() if parameters.get(name) is not None]
    return f"{kind}, {', '.join(details)}" if details else str(kind)
