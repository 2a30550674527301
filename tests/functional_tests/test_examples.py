"""The scripts in examples/conversion, alone and under torchrun."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.bridge.verification import compare_folders
from tests.programs import run_forked, run_started
from tests.tiny_folder import save_tiny_folder

EXAMPLES = Path(__file__).parents[2] / "examples" / "conversion"


@pytest.fixture(params=["forked", pytest.param("started", marks=pytest.mark.proof)])
def run_example(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs a script, under torchrun if `num_ranks` is given; its stdout."""
    run = {"forked": run_forked, "started": run_started}[request.param]

    def run_example(script: str, *argv: object, num_ranks: int | None = None) -> str:
        result = run(EXAMPLES / script, *argv, num_ranks=num_ranks)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_example


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "hf")


@pytest.mark.parametrize("num_ranks", [None, 2])
def test_convert_checkpoints(run_example, hf_folder, tmp_path, num_ranks):
    megatron, exported = tmp_path / "megatron", tmp_path / "exported"
    common = ["--hf-model", hf_folder, "--megatron-path", megatron]
    assert run_example("convert_checkpoints.py", "import", *common, num_ranks=num_ranks) == f"wrote {megatron}\n"
    run_example("convert_checkpoints.py", "export", *common, "--hf-path", exported, num_ranks=num_ranks)
    assert compare_folders(hf_folder, exported).passes


def test_generate_text(run_example, hf_folder):
    argv = ["--hf_model_path", hf_folder, "--prompt", "Paris", "--max_new_tokens", 8]
    alone = run_example("hf_to_megatron_generate_text.py", *argv)
    assert len(alone) > 1
    assert run_example("hf_to_megatron_generate_text.py", *argv, "--pp", 2, num_ranks=2) == alone


def test_roundtrip(run_example, hf_folder, tmp_path):
    argv = ["--hf-model-id", hf_folder, "--tp", 2, "--output-dir", tmp_path / "out"]
    printed = run_example("hf_megatron_roundtrip_multi_gpu.py", *argv, num_ranks=2)
    assert printed.startswith("TP=2 PP=1: ")
    assert "0 mismatches" in printed
    assert compare_folders(hf_folder, tmp_path / "out").passes
