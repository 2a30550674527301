"""Which layers of sparse attention share the choice of keys, and on which pipeline stages they can."""

import pytest
from transformers import GlmMoeDsaConfig

from megatron.bridge import AutoBridge
from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.transformer.sparse_attention import check_index_sharing
from tests.tiny_models import TINY_MODELS


def _provider(**values: object) -> object:
    config = {**TINY_MODELS["glm-moe-dsa"].hf_config().to_dict(), **values}
    return AutoBridge.from_hf_config(GlmMoeDsaConfig(**config)).to_megatron_provider(load_weights=False)


@pytest.mark.parametrize("kinds", ["FFFF", "FSFS", "FFSF", "FFFS", "FSSF", "FSSS"])
def test_schedules(kinds: str) -> None:
    types = [{"F": "full", "S": "shared"}[kind] for kind in kinds]
    provider = _provider(indexer_types=types)
    bridge = AutoBridge.from_hf_config(TINY_MODELS["glm-moe-dsa"].hf_config())
    assert bridge._model_bridge.megatron_to_hf_config(provider)["indexer_types"] == types


def test_a_schedule_without_a_period() -> None:
    with pytest.raises(UnsupportedConfigError, match=r"indexer_types \['full', 'shared', 'shared', 'full', 'shared'"):
        _provider(
            num_hidden_layers=6,
            mlp_layer_types=None,
            layer_types=None,
            indexer_types=["full", "shared", "shared", "full", "shared", "full"],
        )


def test_a_stage_that_needs_the_indices_of_another() -> None:
    provider = _provider(indexer_types=["full", "full", "shared", "full"])
    check_index_sharing(provider, 0, 3)
    check_index_sharing(provider, 3, 1)
    with pytest.raises(ParallelLayoutError, match=r"layers 2 to 3: layer 2 .* layer 1 chooses"):
        check_index_sharing(provider, 2, 2)
