"""What the commands print, and how they end."""

import dataclasses
import json
import re
import shlex
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from megatron.bridge.cli import main, output
from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource
from megatron.bridge.transport import launcher, process_groups
from megatron.bridge.verification import compare_folders
from tests.quantized import save_quantized
from tests.tiny_models import TINY_MODELS


@pytest.fixture(autouse=True)
def no_process_groups():
    process_groups.destroy()
    yield
    process_groups.destroy()


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict]:
    """The exit code and the one JSON object on stdout."""
    capsys.readouterr()
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_models(capsys):
    code, found = run_json(capsys, "models")
    assert code == 0
    (llama,) = (row for row in found["models"] if row["architecture"] == "LlamaForCausalLM")
    assert (llama["bridge"], llama["model_type"]) == ("LlamaBridge", "llama")
    assert {"tp1", "tp2", "pp2", "tp2-sp"} == set(llama["proven_layouts"])
    assert 0 < llama["max_diff"] <= 1e-5
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert all(row["architecture"] in table for row in found["models"])


def test_import_then_export(hf_folder, tmp_path, capsys):
    code, imported = run_json(capsys, "import", hf_folder, tmp_path / "checkpoint")
    assert code == 0
    assert imported["out"] == str(tmp_path / "checkpoint")
    assert imported["num_bytes"] >= SafetensorsSource(hf_folder).nbytes
    assert imported["peak_memory_bytes"] > 2**20

    code, exported = run_json(capsys, "export", tmp_path / "checkpoint", tmp_path / "exported")
    assert code == 0
    assert exported["hf"] == str(hf_folder)
    result = compare_folders(hf_folder, tmp_path / "exported")
    assert result.passes
    assert result.num_tensors == len(SafetensorsSource(hf_folder))


def test_the_next_commands_are_said_and_work(hf_folder, bare_folder, tmp_path, capsys):
    save_quantized("llama", tmp_path / "fp8")
    out, exported, bare = tmp_path / "a checkpoint", tmp_path / "exported", tmp_path / "bare"
    runs = {
        ("import", str(hf_folder), str(out)): [["verify", str(out), str(hf_folder)], ["generate", str(out)]],
        ("export", str(out), str(exported)): [["verify", str(out), str(exported)], ["generate", str(exported)]],
        ("import", str(bare_folder), str(bare), "--dtype", "bf16"): [["export", str(bare), f"{bare}-hf"]],
        ("export", str(bare), f"{bare}-hf", "--dtype", "fp32"): [["inspect", f"{bare}-hf"]],
        ("dequantize", str(tmp_path / "fp8"), str(tmp_path / "plain")): [
            ["verify", str(tmp_path / "fp8"), str(tmp_path / "plain")],
            ["inspect", str(tmp_path / "plain")],
        ],
    }
    for argv, expected in runs.items():
        assert main(list(argv)) == 0
        said = re.findall(r"^Next: megatron-bridge (.*)$", capsys.readouterr().out, re.MULTILINE)
        commands = [shlex.split(line) for line in said]
        assert [words[: len(start)] for words, start in zip(commands, expected, strict=True)] == expected
        for words in commands:
            if words[0] != "export":  # which is the next of these
                assert main([*words, *(["--max-new-tokens", "2"] if words[0] == "generate" else [])]) == 0, words
                process_groups.destroy()
        capsys.readouterr()


def test_verify_of_different_models_groups_layers_and_experts(tmp_path, capsys):
    tiny = TINY_MODELS["qwen3-moe"]
    dataclasses.replace(tiny, config={**tiny.config, "num_hidden_layers": 3}).save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    number = iter(range(10_000))
    for name in [name for name in weights if "experts" in name or "q_proj" in name]:
        weights[name].view(-1)[next(number)] += 1  # each of them at another place
    del weights["model.layers.0.mlp.experts.2.up_proj.weight"], weights["model.layers.2.self_attn.k_norm.weight"]
    del weights["model.layers.0.self_attn.k_norm.weight"]
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("41 different")
    starts = [line.strip().partition(": ")[0] for line in lines]
    layer = "model.layers.0-2"
    assert sorted(starts[:-1]) == sorted(
        [
            "model.layers.0.mlp.experts.2.up_proj.weight",
            "model.layers.*.self_attn.k_norm.weight (2 tensors)",
            f"{layer}.self_attn.q_proj.weight (3 tensors)",
            f"{layer}.mlp.experts.0-3.down_proj.weight (12 tensors)",
            f"{layer}.mlp.experts.0-3.gate_proj.weight (12 tensors)",
            "model.layers.*.mlp.experts.*.up_proj.weight (11 tensors)",
        ]
    )
    assert sum("values: the first of them: 1 of " in line for line in lines) == 4


def test_import_converts_the_dtype(hf_folder, tmp_path):
    import torch

    assert main(["import", str(hf_folder), str(tmp_path / "checkpoint"), "--dtype", "fp32"]) == 0
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "exported")]) == 0
    assert {info.dtype for info in SafetensorsSource(tmp_path / "exported").infos.values()} == {torch.float32}


@pytest.fixture
def orphan(hf_folder, tmp_path):
    """A checkpoint whose source is gone."""
    shutil.copytree(hf_folder, tmp_path / "source")
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "orphan")]) == 0
    shutil.rmtree(tmp_path / "source")
    return tmp_path / "orphan"


def test_export_without_the_source(hf_folder, orphan, tmp_path, capsys):
    capsys.readouterr()
    assert main(["export", str(orphan), str(tmp_path / "exported")]) == 0
    printed = capsys.readouterr()
    assert "note: its source" in printed.err
    assert "--hf" in printed.err
    assert "Exported" in printed.out
    assert compare_folders(hf_folder, tmp_path / "exported").passes
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == (hf_folder / "tokenizer.json").read_bytes()


def test_export_without_any_config(hf_folder, orphan, tmp_path, capsys):
    shutil.rmtree(orphan / "iter_0000000" / "tokenizer")
    capsys.readouterr()
    assert main(["export", str(orphan), str(tmp_path / "exported")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "pass --hf" in error
    assert not (tmp_path / "exported").exists()
    assert main(["export", str(orphan), str(tmp_path / "exported"), "--hf", str(hf_folder)]) == 0


def test_roundtrip(hf_folder, tmp_path, capsys):
    code, found = run_json(capsys, "roundtrip", hf_folder)
    assert code == 0
    source = SafetensorsSource(hf_folder)
    expected = {"passed": True, "num_tensors": len(source), "num_bytes": source.nbytes, "num_dropped": 0}
    assert found | expected == found
    assert (found["mismatches"], found["tp"], found["pp"], found["ep"]) == ([], 1, 1, 1)
    assert main(["roundtrip", str(hf_folder), "--out", str(tmp_path / "out")]) == 0
    assert "bit for bit the same" in capsys.readouterr().out
    assert compare_folders(hf_folder, tmp_path / "out").passes


def test_compare(hf_folder, capsys):
    code, found = run_json(capsys, "compare", hf_folder, "--max-new-tokens", 8, "--prompt", "Paris is")
    assert code == 0
    assert 0 <= found["max_abs_diff"] <= found["tolerance"] < found["scale"]
    assert found["num_new_tokens"] == found["num_same_new_tokens"] == 8
    assert found["num_same_argmax"] == found["num_tokens"] > 0
    assert (found["passed"], found["dtype"]) == (True, "float32")


def test_compare_fails_above_the_tolerance(hf_folder, capsys):
    # In half precision the order of operations shows.
    argv = ["compare", str(hf_folder), "--seq-length", "40", "--tolerance", "0", "--dtype", "bf16"]
    code, found = run_json(capsys, *argv)
    assert (code, found["passed"], found["num_tokens"]) == (1, False, 40)
    assert main(argv) == 1
    assert "✗ logits differ" in capsys.readouterr().out


def test_generate(hf_folder, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    argv = ["--prompt", "The capital", "--max-new-tokens", "12", "--dtype", "fp32"]
    code, found = run_json(capsys, "generate", hf_folder, *argv)
    assert code == 0
    tokenizer = AutoTokenizer.from_pretrained(hf_folder)
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype="float32")
    ids = tokenizer("The capital", return_tensors="pt")
    expected = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids.input_ids.shape[1] :]
    assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert main(["import", str(hf_folder), str(tmp_path / "checkpoint")]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "checkpoint"), *argv]) == 0
    assert capsys.readouterr().out == found["text"] + "\n"


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory):
    """A tiny model with 4 experts, for which transformers makes a tokenizer that knows one special token."""
    folder = tmp_path_factory.mktemp("tiny") / "bare"
    TINY_MODELS["qwen3-moe"].save(folder)
    return folder


def test_compare_without_a_tokenizer(bare_folder, capsys):
    code, found = run_json(capsys, "compare", bare_folder)
    assert (code, found["passed"], found["num_tokens"]) == (0, True, 32)


def errors() -> list:
    return [
        pytest.param(["import", "{missing}", "{out}"], "HubError", "no such folder", id="no_such_model"),
        pytest.param(["import", "{empty}", "{out}"], "CheckpointError", "config.json", id="no_config"),
        pytest.param(["import", "{hf}", "{hf}"], "CheckpointError", "not empty", id="out_is_not_empty"),
        pytest.param(["export", "{empty}", "{out}"], "CheckpointError", "no Megatron checkpoint", id="no_checkpoint"),
        pytest.param(
            ["export", "{hf}", "{out}"], "CheckpointError", "`megatron-bridge import` converts", id="hf_export"
        ),
        pytest.param(["inspect", ""], "HubError", "an empty name", id="empty_name"),
        pytest.param(["generate", "{empty}", "--prompt", "x"], "CheckpointError", "neither", id="neither_kind"),
        pytest.param(["generate", "{hf}", "--prompt", "x", "--chat"], "BridgeError", "--no-chat|chat=False", id="chat"),
        pytest.param(["generate", "{hf}", "--prompt", "x", "--top-p", "2"], "BridgeError", "top_p", id="top_p"),
        pytest.param(["compare", "{hf}", "--prompt", ""], "BridgeError", "no tokens", id="empty_prompt"),
        pytest.param(["quickstart", "--workdir", "{hf}"], "CheckpointError", "not empty", id="workdir"),
        pytest.param(
            ["generate", "{bare}", "--prompt", "x"], "CheckpointError", "no tokenizer; .*--hf", id="no_tokenizer"
        ),
        pytest.param(
            ["compare", "{bare}", "--prompt", "x"], "CheckpointError", "no tokenizer", id="no_tokenizer_for_text"
        ),
        pytest.param(["compare", "{hf}", "--tp", "7"], "ParallelLayoutError", r"\(tp\) 7 does not divide", id="tp"),
        pytest.param(["generate", "{hf}", "--prompt", "x", "--pp", "3"], "ParallelLayoutError", r"\(pp\)", id="pp"),
        pytest.param(["roundtrip", "{bare}", "--ep", "3"], "ParallelLayoutError", "num_moe_experts is 4", id="ep"),
        pytest.param(["roundtrip", "{hf}", "--ep", "2"], "ParallelLayoutError", "no experts", id="no_experts"),
        pytest.param(["compare", "{missing}", "--tp", "2"], "HubError", "no such folder", id="nothing_on_ranks"),
        pytest.param(["compare", "{deep}", "--pp", "8192"], "ParallelLayoutError", "machine", id="too_many_ranks"),
        pytest.param(
            ["compare", "{other}", "--tp", "2"], "UnsupportedModelError", "Llama4ForC.* inspect", id="no_bridge"
        ),
    ]


@pytest.mark.parametrize(("argv", "kind", "text"), errors())
def test_bad_input_is_one_clean_message(argv, kind, text, hf_folder, bare_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(launcher, "launch", lambda *_, **__: pytest.fail("ranks were started"))
    places = {"missing": "no/such-model", "empty": tmp_path / "empty", "hf": hf_folder, "out": tmp_path / "out"}
    places |= {"bare": bare_folder, "deep": tmp_path / "deep", "other": tmp_path / "other"}
    LlamaConfig(architectures=["LlamaForCausalLM"], num_hidden_layers=8192).save_pretrained(places["deep"])
    LlamaConfig(architectures=["Llama5ForCausalLM"]).save_pretrained(places["other"])
    argv = [argument.format(**places) for argument in argv]
    code, found = run_json(capsys, *argv)
    assert (code, found["error"]) == (2, kind)
    assert re.search(text, found["message"])
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {found['message']}\n"
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["compare", "x", "--dtype", "int8"], "fp32, bf16 and fp16"),
        (["compare", "x", "--tp", "0"], "--tp"),
        (["compare", "x", "--tp", "two"], "'two' is not a whole number from 1"),
        (["compare", "x", "--tolerance", "-1"], "is not a number from 0"),
        (["compare", "x", "--tolerance", "nan"], "is not a number from 0"),
        (["compare", "x", "--prompt", "a", "--seq-length", "3"], "either --prompt or --seq-length"),
        (["generate", "x"], "--prompt"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors(argv, text, capsys):
    assert main(argv) == 2
    assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(CheckpointError):
        main(["export", str(tmp_path), str(tmp_path / "out"), "--debug"])


def test_only_rank_0_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    output.print_json({"a": 1})
    output.console().print("text")
    assert capsys.readouterr().out == ""


def test_json_of_numbers_that_json_lacks(capsys):
    output.print_json({"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": "nan", "b": "inf", "c": 1.5}


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_500_000, "2.50 MB"), (12_345_678_901, "12.35 GB")],
)
def test_size(num_bytes, text):
    assert output.size(num_bytes) == text
