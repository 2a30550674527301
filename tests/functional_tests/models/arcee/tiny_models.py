"""Tiny models of Arcee (AFM)."""

from tests.tiny_model import TinyModel

ARCEE_MODELS = (
    TinyModel("arcee", "ArceeForCausalLM"),
    TinyModel("arcee-biases", "ArceeForCausalLM", {"attention_bias": True, "mlp_bias": True}),
)
TINY_MODELS = ARCEE_MODELS
