"""Tiny models of Command R7B (Cohere 2)."""

from tests.tiny_model import BIAS, TIED, TinyModel

COHERE2_MODELS = (
    TinyModel("cohere2", "Cohere2ForCausalLM", {"sliding_window": 8, "logit_scale": 0.7}),
    TinyModel("cohere2-tied-bias", "Cohere2ForCausalLM", {"sliding_window": 8, "logit_scale": 0.7, **TIED, **BIAS}),
)
TINY_MODELS = COHERE2_MODELS
