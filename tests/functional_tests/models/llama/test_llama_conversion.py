"""Llama: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.llama.tiny_models import LLAMA_MODELS
from tests.parity import ConversionSuite


class TestLlamaConversion(ConversionSuite):
    models = LLAMA_MODELS
    whole = ["llama"]
