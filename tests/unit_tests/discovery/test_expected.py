"""Weights counted from the config alone, compared with the checkpoints that transformers writes."""

from pathlib import Path

import pytest

from megatron.bridge.discovery import ModelReport, inspect_model
from tests.tiny_models import TINY_MODELS

# A variant of each way in which layers, heads, norms, biases and experts are sized.
COUNTED = (
    "llama-tied", "llama-all-biases", "llama-head-dim", "llama-odd-vocabulary", "qwen2-window-on-some-layers", "qwen3",
    "gemma2-tied-bias", "gemma3", "glm4", "olmo2", "phi", "phi3", "nemotron", "stablelm-head-norms", "cohere2",
    "qwen3-moe-dense-layers", "qwen2-moe", "deepseek-v3", "moonlight", "glm4-moe", "gpt-oss", "olmoe",
    "llama4-dense-layers", "granite-moe", "hunyuan-moe", "exaone-moe", "ernie-4.5-moe", "ernie-4.5-moe-some-layers",
)  # fmt: skip
# Some of their parts have sizes that are not known here.
NOT_COUNTED = ("qwen3-next", "nemotron-h", "mamba2", "lfm2", "gemma4", "deepseek-v3.2", "mimo-v2-flash")


def both_reports(name: str, folder: Path) -> tuple[ModelReport, ModelReport]:
    """The reports of a checkpoint and of its config alone."""
    TINY_MODELS[name].save(folder)
    return inspect_model(folder), inspect_model(folder / "config.json")


@pytest.mark.parametrize("name", COUNTED)
def test_the_count_is_that_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    stored, expected = both_reports(name, tmp_path)
    extra = {"prediction layers", "copies"}  # which transformers does not save
    counts = {kind: n for kind, n in expected.parameters.by_category.items() if kind not in extra}
    assert counts == stored.parameters.by_category
    assert expected.parameters.is_expected and not stored.parameters.is_expected
    assert expected.parameters.total == stored.parameters.total
    assert expected.parameters.active == stored.parameters.active
    if "prediction layers" not in expected.parameters.by_category:
        assert expected.layouts is not None and expected.layouts.rows == stored.layouts.rows  # type: ignore[union-attr]
        assert expected.layers == stored.layers


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_what_cannot_be_told_is_not_counted(name: str, tmp_path: Path) -> None:
    _, expected = both_reports(name, tmp_path)
    assert expected.parameters.total == 0 and expected.parameters.by_category == {}
    assert expected.layouts is not None and expected.layouts.rows[0].max_bytes == 0
    assert expected.support.is_supported
