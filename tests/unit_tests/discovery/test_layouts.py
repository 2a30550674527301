"""Bytes per rank, computed from names and shapes, compared with what megatron-core's models hold on real ranks."""

import contextlib
import dataclasses
from pathlib import Path

import pytest

from megatron.bridge import AutoBridge
from megatron.bridge.discovery import facts, inspection, layouts, weights
from megatron.bridge.discovery.config_levels import load_levels
from megatron.bridge.discovery.families import match_family
from megatron.bridge.discovery.quantized import find_quantization
from megatron.bridge.discovery.reading import read_model
from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.placement import read_placement
from megatron.bridge.transport.boxes import num_elements
from tests.ranks import run_ranks
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS

DENSE = (
    "llama-tied", "llama-all-biases", "llama-odd-vocabulary", "gemma3", "gemma4-keys-are-values", "olmo2", "phi",
    "mamba2", "nemotron-h", "lfm2",
)  # fmt: skip
EXPERTS = ("qwen3-moe-dense-layers", "deepseek-v3", "moonlight", "gpt-oss", "qwen3-next", "olmoe", "glm4-moe")


def computed_layouts(folder: Path) -> layouts.ParallelLayouts:
    """As `inspect_model` computes them, but for megatron-core's own layers."""
    model = read_model(str(folder))
    config = load_levels(model)
    detection, _ = find_quantization(model)
    tensors = weights.read_weights(model, detection, facts.num_layers(config))
    family = match_family(config, [weight.name for weight in tensors])
    tensors = [inspection._as_copy(weight, family) for weight in tensors]
    is_tied = inspection._tying(config, tensors).is_tied
    result = layouts.parallel_layouts(config, family, tensors, is_tied=is_tied, with_transformer_engine=False)
    assert result is not None
    return result


def bytes_held(folder: Path, layout: dict[str, int], fields: dict[str, int] | None = None) -> int:
    """The bytes of the parameters (and of buffers like them) in this rank's model."""
    import torch

    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider(load_weights=False)
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.expert_model_parallel_size = layout.get("ep", 1)
    provider.use_cpu_initialization = True
    for field, value in (fields or {}).items():
        setattr(provider, field, value)
    provider.finalize()
    with torch.device("meta"):
        model = provider.provide()
    return sum(
        num_elements(shard.local_box) * parameter.tensor.element_size()
        for parameter in read_placement([model])
        for shard in parameter.shards
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST_VARIANTS else [pytest.mark.proof]) for name in TINY_MODELS]
)
def test_tensor_parallelism_is_what_providers_accept(name: str, tmp_path: Path) -> None:
    hf_config = TINY_MODELS[name].hf_config()
    hf_config.save_pretrained(tmp_path)
    report = inspection.inspect_model(tmp_path / "config.json")
    accepted = []
    for tp in range(1, 9):
        provider = AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)
        provider.tensor_model_parallel_size, provider.sequence_parallel = tp, tp > 1
        with contextlib.suppress(ParallelLayoutError, UnsupportedConfigError, AssertionError, ValueError):
            provider.finalize()
            accepted.append(tp)
    assert report.layouts is not None and [tp for tp in report.layouts.tp if tp <= 8] == accepted


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}], ids=["tp2", "pp2"])
@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_bytes_per_rank_are_what_megatron_core_holds(name: str, layout: dict[str, int], tmp_path: Path) -> None:
    check(name, layout, tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_bytes_per_rank_with_experts_over_ranks(name: str, tmp_path: Path) -> None:
    check(name, {"ep": 2}, tmp_path)


def test_stages_that_are_not_equal(tmp_path: Path) -> None:
    name, changes = "llama-tied", {"num_hidden_layers": 3}
    model = TINY_MODELS[name]
    dataclasses.replace(model, config={**model.config, **changes}).save(tmp_path)
    (row,) = [row for row in computed_layouts(tmp_path).rows if (row.tp, row.pp) == (1, 2)]
    assert (row.first_stage, row.last_stage) == (2, 1)
    stages = {"num_layers_in_first_pipeline_stage": 2, "num_layers_in_last_pipeline_stage": 1}
    held = run_ranks(bytes_held, 2, tmp_path, {"pp": 2}, stages, pp=2)
    assert (row.max_bytes, row.min_bytes) == (max(held), min(held))


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "expected"),
    [
        (8, 4, [2, 2, 2, 2]),
        (61, 16, [3, *[4] * 14, 2]),
        (7, 2, [4, 3]),
        (9, 4, [2, 3, 3, 1]),
        (11, 8, [3, *[1] * 6, 2]),
    ],
)
def test_layers_per_stage(num_layers: int, num_stages: int, expected: list[int]) -> None:
    assert layouts.layers_per_stage(num_layers, num_stages) == expected
    assert sum(expected) == num_layers


def check(name: str, layout: dict[str, int], folder: Path) -> None:
    TINY_MODELS[name].save(folder)
    sizes = {"tp": 1, "pp": 1, "ep": 1, **layout}
    rows = [row for row in computed_layouts(folder).rows if (row.tp, row.pp, row.ep) == tuple(sizes.values())]
    experts = {} if TINY_MODELS[name].splits_experts else {"etp": 1}
    held = run_ranks(bytes_held, 2, folder, layout, **layout, **experts)
    # Expert-tensor parallelism is tensor parallelism by default, where experts can be cut.
    row = max(rows, key=lambda row: row.etp)
    assert (row.max_bytes, row.min_bytes) == (max(held), min(held))
