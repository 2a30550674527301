"""Gemma: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.gemma.tiny_models import GEMMA_MODELS


class TestGemmaBridge(BridgeSuite):
    models = GEMMA_MODELS
    refused = [
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False, found True")
    ]
