"""Gemma 4 (text): configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.gemma.tiny_models import GEMMA4_MODELS


class TestGemma4Bridge(BridgeSuite):
    models = GEMMA4_MODELS
    refused = [
        ("gemma4", {"num_kv_shared_layers": 3}, "have no earlier layer of their kind"),
        ("gemma4", {"num_kv_shared_layers": 6}, "have no earlier layer of their kind"),
        ("gemma4", {"num_kv_shared_layers": -1}, "have no earlier layer of their kind"),
        ("gemma4", {"enable_moe_block": True, "num_experts": 4}, "needs top_k_experts, moe_intermediate_size"),
        ("gemma4", {"per_layer_config": {1: {"head_dim": 32}}}, "for all layers of a kind"),
    ]
