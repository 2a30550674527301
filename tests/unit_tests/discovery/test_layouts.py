"""Bytes per rank, computed from names and shapes, against what megatron-core's models hold on real ranks."""

from pathlib import Path

import pytest

from megatron.bridge import AutoBridge
from megatron.bridge.discovery import facts, inspection, layouts, weights
from megatron.bridge.discovery.config_levels import load_levels
from megatron.bridge.discovery.families import match_family
from megatron.bridge.discovery.quantized import find_quantization
from megatron.bridge.discovery.reading import read_model
from megatron.bridge.models.conversion.layout import num_elements
from megatron.bridge.models.conversion.placement import read_placement
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

DENSE = (
    "llama-tied",
    "llama-all-biases",
    "llama-odd-vocabulary",
    "gemma3",
    "olmo2",
    "phi",
    "mamba2",
    "nemotron-h",
    "lfm2",
)
EXPERTS = ("qwen3-moe-dense-layers", "deepseek-v3", "moonlight", "gpt-oss", "qwen3-next", "olmoe", "glm4-moe")


def computed_layouts(folder: Path) -> layouts.ParallelLayouts:
    """As `inspect_model` computes them, for layers that are megatron-core's own."""
    model = read_model(str(folder))
    config = load_levels(model)
    found, _ = find_quantization(model)
    tensors = weights.read_weights(model, found, facts.num_layers(config))
    family = match_family(config, [weight.name for weight in tensors])
    tensors = [inspection._as_copy(weight, family) for weight in tensors]
    is_tied = inspection._tying(config, tensors).is_tied
    result = layouts.parallel_layouts(config, family, tensors, is_tied=is_tied, with_transformer_engine=False)
    assert result is not None
    return result


def bytes_held(folder: Path, layout: dict[str, int]) -> int:
    """Bytes of the parameters (and buffers like them) that this rank's model holds."""
    import torch

    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider(load_weights=False)
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.expert_model_parallel_size = layout.get("ep", 1)
    provider.use_cpu_initialization = True
    provider.finalize()
    with torch.device("meta"):
        model = provider.provide()
    return sum(
        num_elements(shard.local_box) * parameter.tensor.element_size()
        for parameter in read_placement([model])
        for shard in parameter.shards
    )


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}], ids=["tp2", "pp2"])
@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_bytes_per_rank_are_what_megatron_core_holds(name: str, layout: dict[str, int], tmp_path: Path) -> None:
    check(name, layout, tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_bytes_per_rank_with_experts_over_ranks(name: str, tmp_path: Path) -> None:
    check(name, {"ep": 2}, tmp_path)


def check(name: str, layout: dict[str, int], folder: Path) -> None:
    TINY_MODELS[name].save(folder)
    sizes = {"tp": 1, "pp": 1, "ep": 1, **layout}
    rows = [row for row in computed_layouts(folder).rows if (row.tp, row.pp, row.ep) == tuple(sizes.values())]
    experts = {} if TINY_MODELS[name].splits_experts else {"etp": 1}
    held = run_ranks(bytes_held, 2, folder, layout, **layout, **experts)
    # Expert-tensor parallelism is tensor parallelism by default, where experts can be cut.
    row = max(rows, key=lambda row: row.etp)
    assert (row.max_bytes, row.min_bytes) == (max(held), min(held))
