"""Whether transformers provably does not read a config field, so that a family need not know it.

Published configs hold many such fields: what the tools that wrote them left there, and what only code outside of
transformers reads. A field may be ignored only if nothing speaks against it; this module is the one place that judges.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.models.conversion.fields.transformers_names import folder_of, names_for, names_read

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Names of the same thing in the config classes of different models.
_SAME_MEANING = (
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon"),
    ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k"),
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    ("head_dim", "attention_head_dim", "head_size", "kv_channels"),
    ("attention_bias", "attn_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias"),
    ("mlp_bias", "use_mlp_bias"),
    ("tie_word_embeddings", "tie_embeddings", "tie_weights"),
    ("sliding_window", "sliding_window_size", "attention_window", "window_size"),
    ("rope_theta", "rope_base", "rotary_base", "rotary_emb_base"),
    ("hidden_act", "hidden_activation", "mlp_hidden_act", "activation_function"),
    ("hidden_size", "d_model", "n_embd"),
    ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "n_inner"),
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    ("num_attention_heads", "num_heads", "n_heads", "n_head"),
    ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
)
# Fields that code of transformers mentions, or another model's config class has, outside of the computation.
_HARMLESS = {
    "gradient_checkpointing": "saves memory in training",
    "model_max_length": "the tokenizer's",
    "sep_token_id": "the tokenizer's; transformers only warns if it stands in a batch without a mask",
}
# What only a rotary embedding reads.
_OF_ROPE = (
    "rope_theta", "rope_scaling", "rope_parameters", "rope_type", "rope_base", "rotary_base", "rotary_emb_base",
    "rotary_pct", "rotary_percent", "partial_rotary_factor", "original_max_position_embeddings",
)  # fmt: skip
_MULTIPLIERS = ("multiplier", "scale", "scaling")


def declares(config_class: "type[PretrainedConfig]", name: str) -> bool:
    """Whether a config class has a field, under this name or as another name of one, or a property or method."""
    other_names = getattr(config_class, "attribute_map", {})
    return (
        name in getattr(config_class, "__dataclass_fields__", {})
        or hasattr(config_class, name)
        or name in other_names
        or name in other_names.values()
    )


def objection(
    hf_config: "PretrainedConfig", name: str, value: object, model_config: "PretrainedConfig | None" = None
) -> str | None:
    """Why a field that the family does not know may not be ignored; `None` if transformers provably does not read it.

    That is so if the model's class is one of transformers, its config class does not declare the field, and neither the
    model's own files nor the code that all models share mention the name. Nor may anything show that the field was
    meant to change the computation: a value that differs from that of a field with the same meaning, a value that asks
    for something which other models can do, or a mention in the code that comes with the model, which is read as text
    and never run.

    Args:
        hf_config: the config that has the field.
        model_config: the config of the whole model, if `hf_config` is only a part of it.
    """
    if declares(type(hf_config), name):
        return f"{type(hf_config).__name__} has this field"
    return undeclared_objection(hf_config, name, value, model_config or hf_config)


def undeclared_objection(
    hf_config: "PretrainedConfig", name: str, value: object, model_config: "PretrainedConfig"
) -> str | None:
    """Like `objection`, for a field that the config class does not declare."""
    folders = [folder for part in (hf_config, model_config) if (folder := folder_of(type(part)))]
    names = names_for(*folders) if len(folders) == 2 else None
    if names is None or not names.own.issuperset(model_config.architectures or [""]):
        return "transformers does not have this model"
    if name in names.own and name not in _HARMLESS:
        return "transformers' code for this model mentions it"
    twins = _twins(hf_config, name)
    if twins:
        differing = [f"{twin} = {stated!r}" for twin, stated in twins.items() if stated != value]
        return f"it contradicts {', '.join(differing)}" if differing else None
    has_no_rope = "rope_parameters" not in names.own
    if name not in _HARMLESS and not (name in _OF_ROPE and has_no_rope):
        if name in names.shared:
            return "code that all models of transformers share mentions it"
        if name in names.declared and not _is_neutral(name, value):
            return "other models of transformers have this field, and the value asks for something"
    mentioning = [file for file, words in _code_of(model_config).items() if name in words]
    return f"the model's own code mentions it ({', '.join(mentioning)})" if mentioning else None


def _twins(hf_config: "PretrainedConfig", name: str) -> dict[str, object]:
    """The fields of the config class that have the same meaning, as far as they have a value."""
    twins: dict[str, object] = {}
    for other in next((names for names in _SAME_MEANING if name in names), ()):
        if other == "rope_theta":
            parameters = _value(hf_config, "rope_parameters")
            value = parameters.get("rope_theta") if isinstance(parameters, dict) else None
        else:
            value = _value(hf_config, other) if declares(type(hf_config), other) else None
        if other != name and value is not None:
            twins[other] = value
    return twins


def _value(hf_config: "PretrainedConfig", name: str) -> object:
    try:
        return getattr(hf_config, name, None)
    except RuntimeError:  # it differs between layers
        return None


def _is_neutral(name: str, value: object) -> bool:
    """Whether a value asks for nothing: false, 0, empty, or 1 of a multiplier."""
    return not value or (value == 1 and name.endswith(_MULTIPLIERS))


def _code_of(model_config: "PretrainedConfig") -> dict[str, set[str]]:
    """The names that the code in the model's folder reads, by file; empty if the config does not ask for such code."""
    folder = getattr(model_config, "name_or_path", "")
    if not folder or not getattr(model_config, "auto_map", None):
        return {}
    files = sorted(Path(folder).glob("*.py"))
    return {file.name: names_read(file.read_text(errors="replace")) for file in files}
