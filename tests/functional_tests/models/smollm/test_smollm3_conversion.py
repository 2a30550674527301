"""SmolLM3: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.smollm.tiny_models import SMOLLM3_MODELS
from tests.parity import ConversionSuite


class TestSmolLM3Conversion(ConversionSuite):
    models = SMOLLM3_MODELS
