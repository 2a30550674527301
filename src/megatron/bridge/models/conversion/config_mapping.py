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
