"""Phi-1, Phi-1.5 and Phi-2: configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.phi.tiny_models import PHI_MODELS


class TestPhiBridge(BridgeSuite):
    models = PHI_MODELS


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["PhiForCausalLM"], "model_type": "phi", "num_hidden_layers": 2, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.4, "resid_pdrop": 0.1, "hidden_act": "gelu_new",
        },
        {"rotary_percent": 0.4, "hidden_dropout": 0.1, "embedding_dropout": 0.0},
    )  # fmt: skip
