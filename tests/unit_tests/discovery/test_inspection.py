"""What `inspect_model` says about language models, compared with transformers' models and with what was written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge.discovery import inspect_model
from megatron.bridge.errors import CheckpointError, HubError
from tests.programs import TIMEOUT
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.discovery.conftest import edit_config

FAMILIES = (
    "llama", "qwen3", "gemma3", "gemma4", "phi3", "olmo2", "stablelm", "qwen3-moe", "mixtral", "deepseek-v3", "gpt-oss",
    "glm4-moe", "qwen3-next", "nemotron-h", "mamba2", "bamba", "falcon-h1", "lfm2", "granite-moe", "llama4", "kimi-k2",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_supported_model_has_rules_for_all_and_its_own_count(name: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name].save(tmp_path)
    report = inspect_model(tmp_path)
    assert report.kind == "LLM" and report.support.is_supported
    assert report.support.architecture == TINY_MODELS[name].published_architecture
    assert not report.support.unmatched and not report.support.unknown_fields and not report.support.foreign_fields
    assert report.support.refused == [] and report.problems == []
    assert report.next_step == f"megatron-bridge import {tmp_path} OUT"
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    assert sum(report.parameters.by_category.values()) == sum(stored.values())
    assert "other" not in report.parameters.by_category
    assert len(report.layers) == len({layer.index for layer in report.layers}) == report.layouts.pp[-1]


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_visit(tmp_path: Path) -> None:
    model = TINY_MODELS["qwen3-moe"].save(tmp_path)
    report = inspect_model(tmp_path)
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    config = model.config
    visited = experts * config.num_experts_per_tok // config.num_experts
    assert report.parameters.by_category["experts"] == experts
    assert report.parameters.active == report.parameters.total - experts + visited


def test_every_unknown_field_is_named_with_its_value_and_level(qwen3_folder: Path) -> None:
    """Fields that other models have, or that contradict one which is read."""
    strange = {"adapter_rank": 8, "mask_value": -10000, "activation_sparsity_pattern": [0.9], "n_layer": 3}
    edit_config(qwen3_folder, **strange)
    report = inspect_model(qwen3_folder)
    assert {field.name: field.value for field in report.support.unknown_fields} == strange
    assert {field.level for field in report.support.unknown_fields} == {"top level"}
    assert not any(field.in_transformers for field in report.support.unknown_fields)
    assert all(name in report.next_step for name in strange)
    assert "transformers/models/qwen3/modeling_qwen3.py" in report.next_step


def test_fields_that_transformers_does_not_read_are_named_and_do_not_matter(qwen3_folder: Path) -> None:
    strange = {f"new_block_{index}": index for index in range(30)}
    strange |= {"hyper_connections": {"streams": 4}, "adapter_rank": 0, "n_layer": 4, "temperature": 0.5}
    edit_config(qwen3_folder, **strange)
    report = inspect_model(qwen3_folder)
    assert {field.name: field.value for field in report.support.not_read} == strange
    assert not report.support.unknown_fields and report.next_step.startswith("megatron-bridge import")
    answers = {decision.question: decision.answer for decision in report.decisions}
    assert all(name in answers["Is every config field known?"] for name in strange)


def test_the_config_of_a_whole_model_for_its_text_model(tmp_path: Path) -> None:
    TINY_MODELS["gemma3"].save(tmp_path)
    edit_config(tmp_path, model_type="gemma3")
    refused = inspect_model(tmp_path).support.refused
    assert [tuple(item) for item in refused] == [("model_type", "gemma3_text", "gemma3")]


def test_an_unknown_kind_of_rope_is_named(qwen3_folder: Path) -> None:
    edit_config(qwen3_folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "spiral": 3})
    assert [field.name for field in inspect_model(qwen3_folder).support.unknown_fields] == ["rope_parameters.spiral"]


def test_fields_that_only_other_families_know(qwen3_folder: Path) -> None:
    edit_config(qwen3_folder, attn_logit_softcapping=30.0, n_shared_experts=2)
    support = inspect_model(qwen3_folder).support
    known_to = {field.name: field.known_to for field in support.foreign_fields}
    assert "Gemma2ForCausalLM" in known_to["attn_logit_softcapping"]
    assert "DeepseekV3ForCausalLM" in known_to["n_shared_experts"]
    assert support.unknown_fields == []


def test_a_value_that_the_family_cannot_represent(tmp_path: Path) -> None:
    TINY_MODELS["deepseek-v3"].save(tmp_path)
    edit_config(tmp_path, topk_method="greedy")
    report = inspect_model(tmp_path)
    assert [tuple(item) for item in report.support.refused] == [("topk_method", "noaux_tc", "greedy")]
    assert "topk_method" in report.next_step


def test_tensors_without_a_rule_are_all_named(qwen3_folder: Path) -> None:
    tensors = load_file(qwen3_folder / "model.safetensors")
    strange = {f"model.layers.{layer}.memory.gate.weight": torch.zeros(2, 2) for layer in range(4)}
    save_file(tensors | strange, qwen3_folder / "model.safetensors")
    report = inspect_model(qwen3_folder)
    assert report.support.unmatched == dict.fromkeys(strange, 1)
    assert "Add a mapping for 4 tensors" in report.next_step and "qwen3_bridge.py" in report.next_step


def test_an_architecture_without_a_bridge_has_a_nearest_one(qwen3_folder: Path) -> None:
    tensors = load_file(qwen3_folder / "model.safetensors")
    renamed = {name.replace("o_proj", "out_proj"): tensor for name, tensor in tensors.items()}
    save_file(renamed, qwen3_folder / "model.safetensors")
    edit_config(qwen3_folder, architectures=["Qwen9ForCausalLM"], model_type="qwen9", memory_slots=4)
    report = inspect_model(qwen3_folder)
    support = report.support
    assert not support.is_supported and "no bridge for architecture Qwen9ForCausalLM" in (support.reason or "")
    assert support.bridge == "Qwen3Bridge"
    assert [field.name for field in support.unknown_fields] == ["memory_slots"]
    assert len(support.unmatched) == 4 and all("out_proj" in name for name in support.unmatched)
    assert support.absent == ["model.layers.*.self_attn.o_proj.weight"]
    assert report.classes.config_class is None and "qwen9" in (report.classes.refusal or "")
    assert "subclass of Qwen3Bridge" in report.next_step and "memory_slots" in report.next_step


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-moe-dense-layers", "deepseek-v3", "hunyuan-moe", "gpt-oss"])
def test_experts_of_a_model_that_nobody_knows(name: str, tmp_path: Path) -> None:
    """Their number and width are read from whatever fields state them, the nearest family's or another's."""
    TINY_MODELS[name].save(tmp_path)
    known = inspect_model(tmp_path)
    edit_config(tmp_path, architectures=["NewForCausalLM"], model_type="new")
    report = inspect_model(tmp_path)
    assert report.classes.config_class is None and not report.support.is_supported
    assert report.parameters.active == known.parameters.active < known.parameters.total
    assert report.summaries["MoE"] == known.summaries["MoE"]
    assert known.layouts is not None and report.layouts is not None and report.layouts.ep == known.layouts.ep
    for field in ("num_moe_experts", "moe_ffn_hidden_size"):
        assert report.layouts.sizes[field] == known.layouts.sizes[field]


def test_an_architecture_that_cannot_be_converted(qwen3_folder: Path) -> None:
    edit_config(qwen3_folder, architectures=["DeepseekV4ForCausalLM"])
    report = inspect_model(qwen3_folder)
    assert "hyper-connections" in report.next_step and "layers of its own in megatron-core first" in report.next_step


def test_levels_of_facts(qwen3_folder: Path) -> None:
    edit_config(qwen3_folder, head_dim=..., torch_dtype="float32", dtype=...)
    facts = {fact.name: fact for facts in inspect_model(qwen3_folder).facts.values() for fact in facts}
    assert facts["hidden_size"].level == "top level" and facts["hidden_size"].value == 64
    assert facts["head_dim"].level == "default of Qwen3Config" and facts["head_dim"].value == 128
    assert facts["torch_dtype"].value == "float32"


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    TINY_MODELS["qwen3-next-dense-layers"].save(tmp_path)
    kinds = [(layer.mixer, layer.feed_forward) for layer in inspect_model(tmp_path).layers]
    stated = [kind.replace("_", " ") for kind in TINY_MODELS["qwen3-next-dense-layers"].hf_config().layer_types]
    assert set(stated) == {"linear attention", "full attention"}
    assert kinds == list(zip(stated, ["MLP", "experts", "experts", "experts"], strict=True))


def test_tied_embeddings_and_an_output_layer_all_the_same(tmp_path: Path) -> None:
    TINY_MODELS["llama-tied"].save(tmp_path)
    tying = inspect_model(tmp_path).tying
    assert tying.is_tied and tying.has_output_layer is False
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    report = inspect_model(tmp_path)
    assert report.tying.has_output_layer and report.parameters.by_category["copies"] == 128 * 64
    assert report.parameters.total == sum(n for name, n in report.parameters.by_category.items() if name != "copies")


def test_a_config_alone(qwen3_folder: Path, tmp_path: Path) -> None:
    for path in (qwen3_folder / "config.json", tmp_path / "another_name.json"):
        if not path.exists():
            path.write_text((qwen3_folder / "config.json").read_text())
        report = inspect_model(path)
        assert report.source == "config.json" and report.support.bridge == "Qwen3Bridge"
        assert report.parameters.num_tensors == 0 and report.layouts is not None and report.layouts.tp == [1, 2]
        assert "Inspect the folder or the hub id" in report.next_step


def test_files_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    TINY_MODELS["llama"].hf_model().save_pretrained(tmp_path, max_shard_size="200KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[0]
    lost.unlink()
    report = inspect_model(tmp_path)
    assert lost.name in report.problems[0] and "Complete the folder first" in report.next_step
    assert not report.support.unmatched


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("config.json", "{", CheckpointError, "malformed JSON"),
        ("config.json", "[]", CheckpointError, "expected a JSON object"),
        ("weights.bin", "", CheckpointError, "expected a model's folder"),
        ("none", None, HubError, "none"),
    ],
)
def test_what_is_no_model(
    name: str, text: str | None, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=re.escape(message)):
        inspect_model(tmp_path / name)


def test_a_weight_file_that_is_cut(qwen3_folder: Path) -> None:
    path = qwen3_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        inspect_model(qwen3_folder)


@pytest.mark.proof
def test_the_library_function_hides_nothing_from_its_process(qwen3_folder: Path) -> None:
    code = (
        "import sys; from megatron.bridge.discovery import inspect_model; inspect_model(sys.argv[1]);"
        "import torch, transformers; print(transformers.Qwen3ForCausalLM.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code, qwen3_folder], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.stdout.strip() == "Qwen3ForCausalLM", result.stderr


def test_the_report_is_plain_json(qwen3_folder: Path) -> None:
    report = inspect_model(qwen3_folder).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert {"facts", "parameters", "quantization", "support", "layouts", "next_step"} <= report.keys()
