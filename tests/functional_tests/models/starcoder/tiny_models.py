"""Tiny models of StarCoder2."""

from tests.tiny_model import TinyModel

STARCODER2_MODELS = (
    TinyModel("starcoder2", "Starcoder2ForCausalLM"),
    TinyModel("starcoder2-tied-window", "Starcoder2ForCausalLM", {"tie_word_embeddings": True, "sliding_window": 8}),
    TinyModel("starcoder2-no-bias", "Starcoder2ForCausalLM", {"use_bias": False, "hidden_act": "gelu"}),
)
TINY_MODELS = STARCODER2_MODELS
