"""Fields of a config that transformers provably does not read: evidence, in place of a list of harmless names.

Published configs carry fields of training frameworks, of inference engines and of older versions of a model's code.
A field that a family does not know is accepted if nothing reads it, and refused if anything might. The names that
transformers' code mentions are listed in `transformers_names.json` (`make names`), for the pinned version.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("transformers_names.json")

# Mentioned by transformers' generic code, but not in what a forward pass computes.
_NOT_COMPUTED = {
    **dict.fromkeys(("tokenizer_class", "model_max_length", "bos_token", "eos_token", "pad_token"), "tokenization"),
    **dict.fromkeys(("unk_token", "sep_token", "sep_token_id", "decoder_start_token_id"), "tokenization"),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing"), "recomputation in training"),
    **dict.fromkeys(("neftune_noise_alpha", "use_reentrant", "is_training", "training"), "training"),
    **dict.fromkeys(("max_length", "min_length", "do_sample", "temperature", "top_p", "top_k"), "generation"),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "num_beams", "max_new_tokens"), "generation"),
    **dict.fromkeys(("use_flash_attn", "use_flash_attention_2", "attn_implementation"), "kernel choice"),
    **dict.fromkeys(("use_flash_attention", "flash_attn", "device_map"), "kernel choice"),
    **dict.fromkeys(("finetuning_task", "task_specific_params", "name_or_path"), "where the model came from"),
}
# Names that one quantity has in different configs.
_SAME_QUANTITY = (
    {
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon"),
        *("rms_norm_epsilon", "layernorm_eps"),
    },
    {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"},
    {"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k", "top_k_experts"},
    {"n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"},
    {"head_dim", "attention_head_dim", "kv_channels", "d_head"},
    {"rope_theta", "rotary_emb_base", "rotary_base", "rope_base"},
    {"attention_bias", "qkv_bias", "use_qkv_bias", "attention_qkv_bias", "add_qkv_bias"},
    {"mlp_bias", "use_mlp_bias"},
    {"tie_word_embeddings", "tie_embeddings", "tie_embedding", "use_embedding_sharing"},
    {"sliding_window", "sliding_window_size", "attention_window", "window_size"},
    {"hidden_act", "hidden_activation", "activation_function"},
    {"num_hidden_layers", "n_layer", "num_layers"},
    {"hidden_size", "n_embd", "d_model"},
    {"num_attention_heads", "n_head", "num_heads"},
    {"num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num"},
)
_ROPE_FIELDS = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_dim", "rope_type"}
_MULTIPLIERS = ("multiplier", "scale", "scaling", "factor")


class Judgement(NamedTuple):
    """What is known of an unknown field.

    Attributes:
        is_accepted: whether a conversion may leave it aside.
        reason: why, or why not.
    """

    is_accepted: bool
    reason: str


@cache
def _table() -> dict[str, Any]:
    content = json.loads(TABLE.read_bytes())
    return {
        "declared": frozenset(content["declared"]),
        "generic": frozenset(content["generic"]),
        "families": {name: frozenset(names) for name, names in content["families"].items()},
    }


def judge(
    name: str, value: Any, *, hf_config: Any, architecture: str, known: Mapping[str, Any], own_code: str | None
) -> Judgement:
    """Whether a field that a family does not know can be left aside.

    Args:
        architecture: the transformers class that computes the model.
        known: the fields that the family knows, with their values.
        own_code: the text of the code in the model's folder; `None` if there is code that cannot be read.
    """
    table = _table()
    config_class = type(hf_config)
    if architecture not in table["families"]:
        return Judgement(False, f"transformers has no {architecture}, so nothing shows that it is not read")
    if name in _ROPE_FIELDS and not known.keys() & _ROPE_FIELDS:
        return Judgement(True, "the model has no rotary embedding")
    declares = name in getattr(config_class, "__dataclass_fields__", {}) or hasattr(config_class, name)
    attribute_map = getattr(config_class, "attribute_map", {})
    if declares or name in attribute_map or name in attribute_map.values():
        return Judgement(False, f"{config_class.__name__} declares it")
    if name not in _NOT_COMPUTED:
        if name in table["families"][architecture]:
            return Judgement(False, "transformers' modeling code mentions it")
        if name in table["generic"]:
            return Judgement(False, "transformers' generic code mentions it")
    if own_code is None or name in own_code:
        return Judgement(False, "the model's own code may read it")
    contradiction = _contradiction(name, value, known)
    if contradiction is not None:
        return contradiction
    if name in _NOT_COMPUTED:
        return Judgement(True, _NOT_COMPUTED[name])
    if name in table["declared"] and not _is_neutral(name, value):
        return Judgement(False, "other models of transformers compute with it")
    return Judgement(True, "transformers does not read it")


def _contradiction(name: str, value: Any, known: Mapping[str, Any]) -> Judgement | None:
    """What follows from another name of the same quantity; `None` if there is none."""
    for names in _SAME_QUANTITY:
        if name not in names:
            continue
        for other in sorted(names & known.keys()):
            if known[other] is None:
                continue
            if known[other] == value:
                return Judgement(True, f"another name of {other}")
            return Judgement(False, f"it contradicts {other} = {known[other]!r}")
    return None


def _is_neutral(name: str, value: Any) -> bool:
    """Whether a value says that something is absent."""
    if isinstance(value, bool) or value is None or isinstance(value, str | list | dict):
        return not value
    return value == 0 or (value == 1 and name.endswith(_MULTIPLIERS))
