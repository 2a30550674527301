"""Tiny models of Llama and Llama 4."""

from tests.tiny_model import TinyModel, rope

_LLAMA = "LlamaForCausalLM"
_LONGROPE = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0],
    "original_max_position_embeddings": 32,
}
_LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 64}
_LLAMA4 = {
    "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 112,
    "attention_chunk_size": 8, "no_rope_layers": [1, 0, 1, 0], "floor_scale": 4, "attn_scale": 0.5,
}  # fmt: skip

LLAMA_MODELS = (
    TinyModel("llama", _LLAMA),
    TinyModel("llama-tied", _LLAMA, {"tie_word_embeddings": True}),
    TinyModel("llama-attention-bias", _LLAMA, {"attention_bias": True}),
    TinyModel("llama-mlp-bias", _LLAMA, {"mlp_bias": True}),
    TinyModel("llama-all-biases", _LLAMA, {"attention_bias": True, "mlp_bias": True}),
    TinyModel("llama-head-dim", _LLAMA, {"head_dim": 24}),
    TinyModel("llama-mha", _LLAMA, {"num_key_value_heads": 4}),
    TinyModel("llama-odd-vocabulary", _LLAMA, {"vocab_size": 131}),
    TinyModel("llama-odd-vocabulary-tied", _LLAMA, {"vocab_size": 131, "tie_word_embeddings": True}),
    TinyModel("llama-gelu", _LLAMA, {"hidden_act": "gelu", "rms_norm_eps": 1e-5}),
    TinyModel("llama-linear-rope", _LLAMA, rope("linear", factor=4.0)),
    TinyModel("llama-dynamic-rope", _LLAMA, {**rope("dynamic", factor=2.0), "max_position_embeddings": 24}),
    TinyModel("llama-dynamic-rope-short", _LLAMA, {**rope("dynamic", factor=2.0), "max_position_embeddings": 64}),
    TinyModel("llama-yarn-rope", _LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    TinyModel("llama-llama3-rope", _LLAMA, rope("llama3", **_LLAMA3)),
    TinyModel("llama-longrope-long", _LLAMA, rope("longrope", **_LONGROPE)),
    TinyModel("llama-longrope-short", _LLAMA, rope("longrope", **_LONGROPE), seq_length=24),
)

LLAMA4_MODELS = (
    TinyModel("llama4", "Llama4ForCausalLM", {**_LLAMA4, **rope("llama3", **_LLAMA3)}),
    TinyModel(
        "llama4-dense-layers",
        "Llama4ForCausalLM",
        {**_LLAMA4, "moe_layers": [1, 3], "use_qk_norm": False, "attention_bias": True},
    ),
    TinyModel("llama4-no-temperature", "Llama4ForCausalLM", {**_LLAMA4, "attn_temperature_tuning": False}),
)
TINY_MODELS = (*LLAMA_MODELS, *LLAMA4_MODELS)
