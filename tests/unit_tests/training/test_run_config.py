"""`run_config.yaml`: a provider survives it, and nothing in it is executed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron.bridge import AutoBridge
from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.run_config import read_provider, write_run_config
from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME, iteration_folder
from tests.tiny_models import TINY_MODELS


@pytest.mark.parametrize("tiny", TINY_MODELS.values(), ids=TINY_MODELS)
def test_providers_survive(tiny: Any, tmp_path: Path) -> None:
    provider = AutoBridge.from_hf_config(tiny.hf_config()).to_megatron_provider(load_weights=False)
    provider.apply_overrides_and_finalize(dtype=torch.bfloat16)
    write_run_config(tmp_path, provider, "org/name")
    again = read_provider(tmp_path)
    again.finalize()
    for field in dataclasses.fields(provider):
        before, after = getattr(provider, field.name), getattr(again, field.name)
        if not field.name.endswith("init_method"):  # partial functions, made anew by finalize
            assert before == after, field.name


def content(**model: Any) -> dict[str, Any]:
    return {"model": {"_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider", **model}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"model": {"_target_": "os.system", "command": "touch x"}}, "must be a provider"),
        ({"model": {"_target_": "megatron.bridge.models.gpt_provider.GPTModel"}}, "no model provider"),
        ({"model": {"_target_": "megatron.bridge.models.gpt_provider.Nothing"}}, "no megatron.bridge"),
        (content(activation_func={"_target_": "os.system", "_call_": False}), "outside the allowed modules"),
        (content(activation_func={"_target_": "torch.serialization.load", "_call_": False}), "outside the allowed"),
        (content(activation_func={"_target_": "torch.nn.functional.silu"}), "would be called"),
        (content(activation_func={"_target_": "torch.nn.functional.__builtins__", "_call_": False}), "no torch.nn"),
        (content(unknown_field=1), "no field unknown_field"),
        (content(kv_channels=10**9), "kv_channels must be a whole number"),
        (content(window_attention={"kv_channels": 10**9}), "kv_channels must be a whole number"),
        ({"model": None}, "`model` section"),
        ([1, 2], "`model` section"),
    ],
)
def test_hostile_files_are_refused(value: Any, expected: str, tmp_path: Path) -> None:
    (tmp_path / RUN_CONFIG_NAME).write_text(yaml.safe_dump(value))
    with pytest.raises(CheckpointError, match=expected):
        read_provider(tmp_path)


def test_python_objects_in_yaml_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / RUN_CONFIG_NAME).write_text(f"model: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(CheckpointError, match="not valid YAML"):
        read_provider(tmp_path)
    assert not marker.exists()


def test_a_value_that_is_no_data_is_refused(tmp_path: Path) -> None:
    provider = AutoBridge.from_hf_config(TINY_MODELS["llama"].hf_config()).to_megatron_provider(load_weights=False)
    provider.activation_func = lambda x: x
    with pytest.raises(CheckpointError, match="activation_func"):
        write_run_config(tmp_path, provider)


def test_which_iteration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no Megatron checkpoint"):
        iteration_folder(tmp_path)
    for iteration in (0, 20):
        (tmp_path / f"iter_{iteration:07d}").mkdir()
    assert iteration_folder(tmp_path).name == "iter_0000020"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("0\n")
    assert iteration_folder(tmp_path).name == "iter_0000000"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(CheckpointError, match="names iteration 7"):
        iteration_folder(tmp_path)


def test_a_checkpoint_does_not_choose_where_logs_are_written(tmp_path: Path) -> None:
    provider = GPTModelProvider(num_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8)
    write_run_config(tmp_path, provider)
    path = tmp_path / RUN_CONFIG_NAME
    content = yaml.safe_load(path.read_text())
    content["model"]["config_logger_dir"] = str(tmp_path / "logs")
    path.write_text(yaml.safe_dump(content))
    assert read_provider(tmp_path).config_logger_dir == ""
