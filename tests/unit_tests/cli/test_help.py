"""Help is instant: nothing heavy is imported for it."""

import json
import re
import subprocess
import sys

import pytest
import typer

from megatron.bridge import __version__
from megatron.bridge.cli import main
from megatron.bridge.cli.app import app
from tests.programs import TIMEOUT

COMMANDS = (
    *(
        "quickstart",
        "inspect",
        "import",
        "export",
        "dequantize",
        "verify",
        "roundtrip",
        "compare",
        "generate",
        "models",
    ),
)

HEAVY = ("torch", "transformers", "megatron.core", "numpy", "safetensors", "huggingface_hub")

# Runs several command lines in one fresh interpreter and prints, per line, which heavy modules it has by then.
SCRIPT = """
import contextlib, io, json, sys
from megatron.bridge.cli import main
report = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(argv)
    report.append([code, out.getvalue(), [name for name in json.loads(sys.argv[2]) if name in sys.modules]])
print(json.dumps(report))
"""


def test_help_imports_nothing_heavy():
    lines = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(HEAVY)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    for argv, (code, text, imported) in zip(lines, json.loads(result.stdout), strict=True):
        assert code == 0, argv
        assert text, argv
        assert imported == [], argv


def test_a_usage_error_is_as_light():
    arguments = [sys.executable, "-c", SCRIPT, json.dumps([["compare", "--nonsense"]]), json.dumps(HEAVY)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert json.loads(result.stdout) == [[2, "", []]]
    assert "--nonsense" in result.stderr


def test_a_layout_is_refused_without_torch(tmp_path):
    fields = {"model_type": "llama", "num_attention_heads": 8, "hidden_size": 64, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **fields}))
    lines, heavy = [["compare", str(tmp_path), "--tp", "3"]], ["torch", "megatron.core"]
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(heavy)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert json.loads(result.stdout) == [[2, "", []]]
    assert result.stderr.startswith(f"error: {tmp_path}: tensor_model_parallel_size (tp) 3 does not divide")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_the_common_options(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: megatron-bridge {command}" in text
    assert "--json" in text
    assert "--debug" in text


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_breaks_no_sentence(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"] if command else ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    group = typer.main.get_command(app)
    shown = group.commands[command].params if command else list(group.commands.values())
    for text in (shown_one.help for shown_one in shown):
        first = text.split("\n\n")[0] if not command else text
        for sentence in re.split(r"(?<=[.:;]) |\n+", first.strip()):
            assert any(sentence in line for line in lines), sentence
    assert not any("<bool>" in line for line in lines if "--help" not in line)


def test_root_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f" {command} " in text for command in COMMANDS)
    assert "Exit codes" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"megatron-bridge {__version__}\n"
