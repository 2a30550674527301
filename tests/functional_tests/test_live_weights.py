"""Live models on several ranks: sliced loading without communication, saving by byte ranges, streams for engines."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from tests.parity import changed_tensors
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

COLLECTIVES = [
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single",
    "barrier", "broadcast", "broadcast_object_list", "gather", "gather_object", "recv", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "scatter", "send",
]  # fmt: skip


def _model(bridge: AutoBridge, layout: dict[str, Any], load_weights: bool = True) -> list[Any]:
    provider = bridge.to_megatron_provider(load_weights)
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.expert_model_parallel_size = layout.get("ep", 1)
    provider.expert_tensor_parallel_size = layout.get("etp")
    return provider.provide_distributed_model(wrap_with_ddp=False)


def _load_silently(folder: Path, layout: dict[str, Any]) -> tuple[int, int, int]:
    """Loads while every collective is forbidden; returns bytes read, bytes of own weights, and number of weights."""
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = _model(bridge, layout, load_weights=False)

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a collective was called while loading")

    kept = {name: getattr(dist, name) for name in COLLECTIVES}
    for name in COLLECTIVES:
        setattr(dist, name, forbidden)
    try:
        bridge.load_hf_weights(model)
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
    report = bridge.load_report
    own = sum(parameter.nbytes for parameter in model[0].parameters())
    return report.bytes_read, own, len(report.plan)


LAYOUTS = [
    ("llama-mha", {"tp": 4}, 4),
    ("llama-mha", {"tp": 2, "pp": 2}, 4),
    ("llama-odd-vocabulary-tied", {"tp": 2}, 2),
    ("qwen3-moe", {"ep": 2, "etp": 1}, 2),
]


@pytest.mark.parametrize(("name", "layout", "num_ranks"), LAYOUTS, ids=str)
def test_each_rank_reads_its_own_bytes(name: str, layout: dict[str, Any], num_ranks: int, tmp_path: Path) -> None:
    TINY_MODELS[name].save(tmp_path / "hf")
    results = run_ranks(_load_silently, num_ranks, tmp_path / "hf", layout, **layout)
    assert all(0 < num_read <= own * 1.05 for num_read, own, _ in results)
    source = load_file(tmp_path / "hf" / "model.safetensors")
    assert sum(num_read for num_read, _, _ in results) >= sum(tensor.nbytes for tensor in source.values())


def _save(folder: Path, layout: dict[str, Any], out: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = _model(bridge, layout)
    gathered = []
    broadcast = dist.broadcast
    dist.broadcast = lambda tensor, *args, **kwargs: (
        gathered.append(tensor.nbytes) or broadcast(tensor, *args, **kwargs)
    )
    bridge.save_hf_pretrained(model, out, distributed_save=True)
    dist.broadcast = broadcast
    assert not gathered, "weights were gathered"


@pytest.mark.parametrize(("name", "layout", "num_ranks"), [*LAYOUTS, ("qwen3-yarn-rope", {}, 1)], ids=str)
def test_every_rank_writes_its_own_ranges(name: str, layout: dict[str, Any], num_ranks: int, tmp_path: Path) -> None:
    TINY_MODELS[name].save(tmp_path / "hf")
    run_ranks(_save, num_ranks, tmp_path / "hf", layout, tmp_path / "out", **layout)
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "hf").iterdir()
    )


def _stream(folder: Path, layout: dict[str, Any]) -> dict[str, Any]:
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = _model(bridge, layout)
    tasks = bridge.get_conversion_tasks(model)
    described = bridge.describe_hf_weights(model, tasks)
    all_at_once = dict(bridge.export_hf_weights(model, conversion_tasks=tasks))
    small_buckets = dict(bridge.export_hf_weights(model, conversion_tasks=tasks, bucket_bytes=1 << 12))
    chosen = dict(bridge.export_hf_weights(model, select=lambda hf_name: ".1.mlp." in hf_name))
    halves = dict(bridge.export_hf_weights(model, weight_dtype=torch.bfloat16, cpu=True))
    return {"described": described, "all": all_at_once, "small": small_buckets, "chosen": chosen, "halves": halves}


@pytest.mark.parametrize(("name", "layout", "num_ranks"), LAYOUTS, ids=str)
def test_streams_for_inference_engines(name: str, layout: dict[str, Any], num_ranks: int, tmp_path: Path) -> None:
    TINY_MODELS[name].save(tmp_path / "hf")
    source = load_file(tmp_path / "hf" / "model.safetensors")
    for found in run_ranks(_stream, num_ranks, tmp_path / "hf", layout, **layout):
        for kind in ("all", "small"):
            assert found[kind].keys() == source.keys()
            assert all(torch.equal(found[kind][key], tensor) for key, tensor in source.items())
        described = {info.name: (tuple(info.shape), info.dtype) for info in found["described"]}
        assert described == {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in source.items()}
        assert found["chosen"].keys() == {key for key in source if ".1.mlp." in key}
        assert all(torch.equal(found["halves"][key], tensor.bfloat16()) for key, tensor in source.items())


def _second_refit(folder: Path, layout: dict[str, Any]) -> list[torch.Tensor]:
    """Tasks are made once; later exports see the weights of the moment."""
    bridge = AutoBridge.from_hf_pretrained(folder)
    model = _model(bridge, layout)
    tasks = bridge.get_conversion_tasks(model)
    seen = []
    for _ in range(2):
        exported = dict(bridge.export_hf_weights(model, conversion_tasks=tasks))
        seen.append(exported["model.norm.weight"].clone() if "model.norm.weight" in exported else None)
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.add_(1)
    return seen


def test_cached_tasks_follow_the_model(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    for first, second in run_ranks(_second_refit, 2, tmp_path / "hf", {"tp": 2}, tp=2):
        assert torch.equal(first + 1, second)
