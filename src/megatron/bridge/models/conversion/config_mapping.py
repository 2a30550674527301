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

FieldMapping = Mapping[str, str | tuple[str, ...]]

# HF field -> provider field, for decoder-only transformers. The values are the same on both sides.
DECODER_FIELDS: dict[str, str] = {
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

# One switch for the biases of all four projections of attention.
ATTENTION_BIAS = {"attention_bias": ("add_qkv_bias", "attention_output_bias")}


# HF field -> provider field of gated delta nets, and the provider fields of models that have them.
GATED_DELTA_NET_FIELDS = {
    name: name
    for name in (
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
    )
}
GATED_DELTA_NET_DEFAULTS = {
    "experimental_attention_variant": "gated_delta_net",
    "attention_output_gate": True,
    "layernorm_zero_centered_gamma": True,
    "qk_layernorm": True,
}


def linear_attention_fields(
    hf_config: "PretrainedConfig", where: str, linear: str = "linear_attention"
) -> dict[str, Any]:
    """The provider field for which layers have linear attention.

    Args:
        linear: the name of that kind of layer in `layer_types`, or of what the model has in its place.

    Raises:
        UnsupportedConfigError: a kind of layer that is neither linear nor full attention.
    """
    unknown = sorted(set(hf_config.layer_types) - {linear, "full_attention"})
    if unknown:
        raise UnsupportedConfigError(
            f"{where}: layer_types {unknown} are not supported; supported: full_attention, {linear}"
        )
    return {"linear_attention_freq": [int(kind == linear) for kind in hf_config.layer_types]}


def linear_attention_values(provider: Any, linear: str = "linear_attention") -> dict[str, Any]:
    """The inverse of `linear_attention_fields`."""
    kinds = ("full_attention", linear)
    return {"layer_types": [kinds[is_linear] for is_linear in provider.linear_attention_freq]}


def decoder_fields(**hf_names: str) -> dict[str, str]:
    """`DECODER_FIELDS` for a config class that names some fields otherwise: `rms_norm_eps="norm_epsilon"`."""
    return {hf_names.get(name, name): field for name, field in DECODER_FIELDS.items()}


def not_read(*names: str) -> dict[str, str]:
    """Fields of published configs that transformers' model leaves unread, for a family's CONFIG_IRRELEVANT."""
    return dict.fromkeys(names, "transformers does not read it")


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
    "quantization_config": "how weights are stored; they are read as numbers",
    "compression_config": "how weights are stored; they are read as numbers",
    "bos_token_id": "generation",
    "eos_token_id": "generation",
    "pad_token_id": "generation",
    "unk_token_id": "tokenization",
    "use_cache": "generation",
    "cache_implementation": "generation",
    "output_hidden_states": "what the HF model returns",
    "output_attentions": "what the HF model returns",
    "return_dict": "what the HF model returns",
    "id2label": "classification heads",
    "label2id": "classification heads",
    "problem_type": "classification heads",
    "chunk_size_feed_forward": "memory saving of the HF model",
    "pretraining_tp": "transformers 5 no longer reads it",
    "max_window_layers": "transformers turns it into layer_types",
    "sliding_window_pattern": "transformers turns it into layer_types",
    "_sliding_window_pattern": "transformers turns it into layer_types",
    "partial_rotary_factor": "transformers puts it into rope_parameters",
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


_ROPE_KINDS = {"full_attention", "sliding_attention"}


@cache
def _activations() -> dict[str, Any]:
    import torch.nn.functional as F
    from megatron.core.activations import quick_gelu, squared_relu

    from megatron.bridge.models.transformer.activations import gelu_new, gelu_tanh

    return {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "gelu_pytorch_tanh": gelu_tanh,
        "gelu_new": gelu_new,
        "relu": F.relu,
        "relu2": squared_relu,
        "quick_gelu": quick_gelu,
    }


def activation_function(name: str, where: str, field: str = "hidden_act") -> Any:
    """The function of an HF activation name.

    Raises:
        UnsupportedConfigError: a name with no exact counterpart.
    """
    if name not in _activations():
        raise UnsupportedConfigError(
            f"{where}: {field}: activation {name!r} is not supported: {', '.join(sorted(_activations()))} are"
        )
    return _activations()[name]


def activation_name(function: Any) -> str:
    """The HF name of an activation function."""
    for name, known in _activations().items():
        if known is function:
            return name
    raise UnsupportedConfigError(f"activation function {function!r} has no Hugging Face name")


def mapped_fields(hf_config: "PretrainedConfig", mapping: FieldMapping) -> dict[str, Any]:
    """The provider fields that equal an HF field. A field that is `None` keeps the provider's default."""
    fields: dict[str, Any] = {}
    for name, targets in mapping.items():
        value = getattr(hf_config, name, None)
        if value is not None:
            fields |= dict.fromkeys((targets,) if isinstance(targets, str) else targets, value)
    return fields


def mapped_values(provider: Any, mapping: FieldMapping) -> dict[str, Any]:
    """The inverse of `mapped_fields`."""
    return {
        name: getattr(provider, targets if isinstance(targets, str) else targets[0])
        for name, targets in mapping.items()
    }


def rotary_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of the rotary embedding, or of two: of layers with full attention and with a window.

    Raises:
        UnsupportedConfigError: no rope parameters, or parameters for other kinds of layers.
    """
    found: dict[str, Any] = getattr(hf_config, "rope_parameters", None) or {}
    is_nested = bool(found) and set(found) <= _ROPE_KINDS
    parameters, window = (found.get("full_attention"), found.get("sliding_attention")) if is_nested else (found, None)
    if not parameters or "rope_theta" not in parameters or (is_nested and not window):
        raise UnsupportedConfigError(
            f"{where}: rope_parameters must hold rope_theta for all layers, or for full_attention and "
            f"sliding_attention, found {found!r}"
        )
    rotary_percent = _rotary_percent(parameters)
    if window and _rotary_percent(window) != rotary_percent:
        raise UnsupportedConfigError(
            f"{where}: rope_parameters: partial_rotary_factor must be the same for all kinds of layers"
        )
    return {
        "position_embedding_type": "rope",
        "rotary_base": float(parameters["rope_theta"]),
        "rotary_percent": rotary_percent,
        "rope_parameters": dict(parameters),
        "window_rope_parameters": dict(window) if window else None,
    }


def _rotary_percent(parameters: Mapping[str, Any]) -> float:
    """The rotated part of each head. Proportional rope turns all of it, some dimensions by the angle 0."""
    is_proportional = parameters.get("rope_type") == "proportional"
    return 1.0 if is_proportional else float(parameters.get("partial_rotary_factor", 1.0))


def rotary_values(provider: Any) -> dict[str, Any]:
    """The inverse of `rotary_fields`."""
    parameters = provider.rope_parameters or {"rope_type": "default", "rope_theta": provider.rotary_base}
    if provider.window_rope_parameters is not None:
        parameters = {"full_attention": parameters, "sliding_attention": provider.window_rope_parameters}
    return {"rope_parameters": parameters}


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


def step_limit_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider field of Mamba-2's `time_step_limit`.

    Raises:
        UnsupportedConfigError: a largest step size.
    """
    smallest, largest = hf_config.time_step_limit or (0.0, float("inf"))
    if largest != float("inf"):
        raise UnsupportedConfigError(f"{where}: time_step_limit: expected no largest step size, found {largest!r}")
    return {"mamba_dt_min": float(smallest)}


def step_limit_values(provider: Any) -> dict[str, Any]:
    """The inverse of `step_limit_fields`."""
    return {"time_step_limit": (provider.mamba_dt_min, float("inf"))}


def check_values(hf_config: "PretrainedConfig", where: str, **allowed: tuple[Any, ...]) -> None:
    """Raises `UnsupportedConfigError` naming every field whose value is not among the allowed ones."""
    problems = [
        f"{name}: expected {' or '.join(map(repr, values))}, found {getattr(hf_config, name)!r}"
        for name, values in allowed.items()
        if getattr(hf_config, name) not in values
    ]
    if problems:
        raise UnsupportedConfigError(f"{where}: this cannot be represented exactly: {'; '.join(problems)}")


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
