"""Gemma 2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.gemma.tiny_models import GEMMA2_MODELS


class TestGemma2Bridge(BridgeSuite):
    models = GEMMA2_MODELS
    refused = [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "mish"}, "hidden_activation: activation 'mish' is not supported"),
    ]
