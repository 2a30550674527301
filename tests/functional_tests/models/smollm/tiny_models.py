"""Tiny models of SmolLM3."""

from tests.tiny_model import TinyModel

_SMOLLM3_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [1, 0, 1, 0]}

SMOLLM3_MODELS = (
    TinyModel("smollm3", "SmolLM3ForCausalLM"),
    TinyModel("smollm3-tied-window", "SmolLM3ForCausalLM", {"tie_word_embeddings": True, **_SMOLLM3_WINDOW}),
)
TINY_MODELS = SMOLLM3_MODELS
