"""HunYuan V1 (dense): configs, names and counts."""

from tests.bridge_suite import BridgeSuite, check_older_file
from tests.functional_tests.models.hunyuan.tiny_models import HUNYUAN_V1_DENSE_MODELS


class TestHunYuanDenseV1Bridge(BridgeSuite):
    models = HUNYUAN_V1_DENSE_MODELS


def test_an_older_file() -> None:
    check_older_file(
        {
            "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "num_hidden_layers": 2,
            "num_key_value_heads": 2, "rope_theta": 10000.0, "use_qk_norm": True, "use_cla": False,
            "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        },
        {"qk_layernorm_scope": "head_after_rope"},
    )  # fmt: skip
