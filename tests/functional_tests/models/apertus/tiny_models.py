"""Tiny models of Apertus."""

from tests.tiny_model import BIAS, TIED, TinyModel

APERTUS_MODELS = (
    TinyModel("apertus", "ApertusForCausalLM"),
    TinyModel("apertus-tied-bias", "ApertusForCausalLM", {**TIED, **BIAS}),
)
TINY_MODELS = APERTUS_MODELS
