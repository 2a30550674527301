"""A checkpoint says what the model is, not how it was spread: saved from any layout, it is read on any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.bridge import AutoBridge
from megatron.bridge.models.run_config import read_provider
from tests.functional_tests.test_multi_token_prediction import save_with_prediction_layer
from tests.parity import changed_tensors
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

# What `process_groups.initialize` calls the fields.
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}

# The model, the layout and the provider fields with which it is saved, and those with which it is read.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "first stage": ("llama", {"pp": 2, "num_layers_in_first_pipeline_stage": 1}, {"tp": 2}),
    "last stage": ("qwen3-moe", {"pp": 2, "num_layers_in_last_pipeline_stage": 1}, {"ep": 2, "etp": 1}),
    "layout": ("llama-odd-vocabulary-tied", {"pp": 2, "pipeline_model_parallel_layout": "E|ttttL"}, {"tp": 2}),
    "layout of chunks": ("llama", {"pp": 2, "pipeline_model_parallel_layout": "Et||tt|tL"}, {"pp": 2}),
    "listed layout": (
        "deepseek-v3",
        {"pp": 2, "pipeline_model_parallel_layout": [["embedding", "decoder"], ["decoder"] * 3 + ["loss"]]},
        {"pp": 2, "vpp": 2},
    ),
    "embedding and loss count": (
        "qwen2",
        {"pp": 2, "account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
        {"pp": 2, "num_layers_in_first_pipeline_stage": 3},
    ),
    "chunks": ("llama-odd-vocabulary", {"pp": 2, "vpp": 2}, {"tp": 2, "sequence_parallel": True}),
    "sequence": ("llama", {"tp": 2, "sequence_parallel": True}, {"pp": 2, "pipeline_model_parallel_layout": "Et|tttL"}),
    "experts": ("qwen3-moe", {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True}, {"tp": 2, "etp": 2}),
    "cut experts": ("qwen3-moe", {"tp": 2, "etp": 2}, {"pp": 2, "num_layers_in_first_pipeline_stage": 1}),
    "pattern of stages": ("nemotron-h", {"pp": 2, "hybrid_layer_pattern": "M|*-M"}, {"pp": 2}),
    "padded query groups": ("qwen2", {"tp": 4, "pad_query_groups": True}, {"tp": 2}),
    "more query groups": ("qwen2", {"tp": 2, "pad_query_groups": True}, {"tp": 4, "pad_query_groups": True}),
}


def _fields(layout: dict[str, Any]) -> dict[str, Any]:
    return {_SIZES.get(name, name): value for name, value in layout.items()}


def _sizes(layout: dict[str, Any]) -> dict[str, int]:
    return {name: size for name, size in layout.items() if name in _SIZES}


def _num_ranks(layout: dict[str, Any]) -> int:
    dense = layout.get("tp", 1) * layout.get("cp", 1)
    return max(dense, layout.get("ep", 1) * layout.get("etp", 1)) * layout.get("pp", 1)


def _save(source: Path, layout: dict[str, Any], out: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(source)
    provider = bridge.to_megatron_provider()
    provider.apply_overrides_and_finalize(overrides=_fields(layout))
    bridge.save_megatron_model(provider.provide_distributed_model(wrap_with_ddp=False), out)


def _load_and_export(source: Path, checkpoint: Path, layout: dict[str, Any], out: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(source)
    bridge.save_hf_pretrained(bridge.load_megatron_model(checkpoint, mp_overrides=_fields(layout)), out)


@pytest.mark.parametrize(("name", "saved", "read"), CASES.values(), ids=CASES)
def test_a_checkpoint_of_any_layout_is_read_at_any_other(
    name: str, saved: dict[str, Any], read: dict[str, Any], tmp_path: Path
) -> None:
    hf, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    TINY_MODELS[name].save(hf)
    run_ranks(_save, _num_ranks(saved), hf, saved, checkpoint, **_sizes(saved))
    AutoBridge.from_hf_pretrained(hf).export_ckpt(checkpoint, tmp_path / "offline")
    assert changed_tensors(hf, tmp_path / "offline") == []
    for number, layout in enumerate(({}, read)):
        out = tmp_path / f"live{number}"
        run_ranks(_load_and_export, _num_ranks(layout), hf, checkpoint, layout, out, **_sizes(layout))
        assert changed_tensors(hf, out) == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("phi", {}),  # with a bias for each token
        ("gemma4-e2b", {}),  # with a second table
        ("llama-tied", {"make_vocab_size_divisible_by": 128}),
        ("nemotron-h", {}),
    ],
)
def test_padding_of_the_vocabulary_is_no_part_of_a_checkpoint(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    hf, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    sizes = {
        field: 131
        for field in ("vocab_size", "vocab_size_per_layer_input")
        if hasattr(TINY_MODELS[name].hf_config(), field)
    }
    replace(TINY_MODELS[name], config={**TINY_MODELS[name].config, **sizes}).save(hf)
    run_ranks(_save, 2, hf, {"tp": 2, **fields}, checkpoint, tp=2)
    AutoBridge.from_hf_pretrained(hf).export_ckpt(checkpoint, tmp_path / "offline")
    assert changed_tensors(hf, tmp_path / "offline") == []
    for tp in (1, 2):
        read = {"tp": tp, "make_vocab_size_divisible_by": 1}
        run_ranks(_load_and_export, tp, hf, checkpoint, read, tmp_path / f"live{tp}", tp=tp)
        assert changed_tensors(hf, tmp_path / f"live{tp}") == []


@pytest.mark.parametrize(("pp", "stages"), [(2, "Ettt|tmL"), (4, "Et|ttt|m|L")])
def test_prediction_layers_on_any_stage(pp: int, stages: str, tmp_path: Path) -> None:
    hf, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    save_with_prediction_layer("deepseek-v3", hf, num_nextn_predict_layers=1)
    saved = {"pp": pp, "pipeline_model_parallel_layout": stages}
    run_ranks(_save, pp, hf, saved, checkpoint, pp=pp)
    AutoBridge.from_hf_pretrained(hf).export_ckpt(checkpoint, tmp_path / "offline")
    run_ranks(_load_and_export, 1, hf, checkpoint, {}, tmp_path / "live")
    assert changed_tensors(hf, tmp_path / "offline") == changed_tensors(hf, tmp_path / "live") == []


def test_the_layout_is_no_part_of_the_saved_model(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    layout = {"pp": 2, "pipeline_model_parallel_layout": "Et|tttL"}
    run_ranks(_save, 2, tmp_path / "hf", layout, tmp_path / "uneven", pp=2)
    run_ranks(_save, 1, tmp_path / "hf", {}, tmp_path / "whole")
    uneven, whole = (
        yaml.safe_load((tmp_path / name / "iter_0000000" / "run_config.yaml").read_text())
        for name in ("uneven", "whole")
    )
    assert uneven["model"] == whole["model"] | {"pipeline_dtype": {"_target_": "torch.float32", "_call_": False}}
    assert uneven["layout"]["pipeline_model_parallel_size"] == 2
    assert uneven["layout"]["pipeline_model_parallel_layout"] == "Et|tttL"


def test_a_layout_among_the_fields_of_the_model_is_left_out(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "iter_0000000" / "run_config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 1}
    path.write_text(yaml.safe_dump(content))
    provider = read_provider(path.parent)
    assert (provider.pipeline_model_parallel_size, provider.num_layers_in_first_pipeline_stage) == (1, None)
