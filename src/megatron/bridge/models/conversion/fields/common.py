"""Config fields that most decoders have."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.activations import activation
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Parts, Provider, Values, same
from megatron.bridge.models.conversion.fields.rope import ROPE

# HF field -> the provider field with the same value, for decoder-only transformers.
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
}
# RMSNorms, a gated MLP, and no biases or dropout but those that a field asks for.
DECODER_DEFAULTS = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
}


def decoder(**hf_names: str | None) -> Parts:
    """The parts of a decoder: sizes, heads, norms, embeddings, activation function and rotary embedding.

    Args:
        hf_names: for each HF field with another name, that name; `None` if the config class lacks the field.

    Example: `"norm_epsilon" in decoder(rms_norm_eps="norm_epsilon", head_dim=None)[0].same` is `True`.
    """
    names = {name: hf_names.get(name, name) for name in (*DECODER_FIELDS, "hidden_act", "rope_parameters")}
    mapping = {hf: DECODER_FIELDS[name] for name, hf in names.items() if hf is not None and name in DECODER_FIELDS}
    parts = [Part(same=mapping, defaults=DECODER_DEFAULTS, to_hf=_unpadded_heads)]
    if names["hidden_act"] is not None:
        parts.append(activation(names["hidden_act"]))
    if names["rope_parameters"] is not None:
        parts.append(ROPE)
    return tuple(parts)


def _unpadded_heads(provider: Provider) -> Values:
    """The numbers of heads, without those that were added for tensor parallelism."""
    if not provider.unpadded_query_groups:
        return {}
    ratio = provider.num_attention_heads // provider.num_query_groups
    return {
        "num_key_value_heads": provider.unpadded_query_groups,
        "num_attention_heads": provider.unpadded_query_groups * ratio,
    }


DECODER = decoder()


def _check_head_dim(hf_config: HFConfig) -> Values:
    stated = getattr(hf_config, "head_dim", None)
    expected = hf_config.hidden_size // hf_config.num_attention_heads
    if stated not in (None, expected):
        raise UnsupportedConfigError(
            f"head_dim {stated!r:.100} cannot be represented: in models of this architecture, transformers computes "
            f"with hidden_size / num_attention_heads; expected {expected}"
        )
    return {}


# To be used with `decoder(head_dim=None)`, where transformers has no other size of heads.
USUAL_HEAD_DIM = Part(
    reads=("head_dim",), to_provider=_check_head_dim, to_hf=lambda provider: {"head_dim": provider.kv_channels}
)

# One switch for the biases of all four projections of attention.
ATTENTION_BIAS = same(attention_bias=("add_qkv_bias", "attention_output_bias"))

# HF fields that do not change what a forward pass computes, and why.
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

# HF fields that must have the value that transformers' decoders have.
FIXED_FIELDS: dict[str, object] = {"is_encoder_decoder": False, "rope_interleaved": False}
