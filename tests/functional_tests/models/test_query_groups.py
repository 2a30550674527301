"""Query groups that are added so that ranks can share them: they change neither logits nor the export."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.parity import parity
from tests.tiny_models import TINY_MODELS


@pytest.mark.parametrize("name", ["mimo-v2-flash", "gemma4-keys-are-values"])
def test_no_query_groups_are_added_where_none_is_missing(name: str, tmp_path: Path) -> None:
    """Layers with a window have more groups than the others."""
    found = parity(TINY_MODELS[name], {"tp": 2, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= found.tolerance


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-all-biases", "gemma4-e2b"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "sequence_parallel": True}], ids=str)
def test_added_query_groups_change_nothing(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    """Three query groups on two ranks: a group of zeros is added, and left out on export."""
    config = {**TINY_MODELS[name].config, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    tiny = replace(TINY_MODELS[name], config=config)
    found = parity(tiny, {**layout, "pad_query_groups": True}, tmp_path)
    assert found.changed == []
    assert found.max_diff <= found.tolerance
