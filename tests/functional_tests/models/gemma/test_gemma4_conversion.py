"""Gemma 4 (text): the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.gemma.tiny_models import GEMMA4_MODELS
from tests.gradients import GradientSuite
from tests.parity import ConversionSuite


class TestGemma4Conversion(ConversionSuite):
    models = GEMMA4_MODELS


class TestGemma4Gradients(GradientSuite):
    cases = [
        ("gemma4-keys-are-values", "tp2"),
        ("gemma4-keys-are-values", "tp2-sp"),
        ("gemma4-moe", "tp2-sp"),
        ("gemma4-e2b", "tp2"),
        ("gemma4-e2b", "tp2-sp"),
        ("gemma4-e2b", "tp2-sp-recompute"),
        ("gemma4-e2b", "pp2"),
        ("gemma4-e2b", "pp2-recompute"),
    ]
