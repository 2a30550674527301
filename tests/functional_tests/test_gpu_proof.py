"""The proof for machines with a GPU, as a dry run on the CPU: every kind of step, the file, going on, the page."""

import json
import time
from pathlib import Path

import pytest

from megatron.bridge import runtime
from tests.programs import run_forked
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS
from tools.gpu_proof import run as program
from tools.gpu_proof.page import gpu_page
from tools.gpu_proof.record import Record


def test_dry_run(tmp_path: Path) -> None:
    results = tmp_path / "gpu.json"
    first = run_forked("-m", "tools.gpu_proof", "--dry-run", "--out", results)
    assert first.returncode == 0, first.stdout + first.stderr
    steps = json.loads(results.read_text())["steps"]
    assert len(steps) == 9
    assert all(step.get("passed", True) for step in steps.values())
    page = gpu_page(results)
    for text in ("9 of 9 steps passed", "## A training step", "| refit |", "| qwen3-moe | ", "| llama | "):
        assert text in page
    again = run_forked("-m", "tools.gpu_proof", "--dry-run", "--out", results)
    assert "going on after 9 results" in again.stdout
    assert "9 steps passed, 0 failed, 0 left" in again.stdout


@pytest.mark.proof
@pytest.mark.parametrize("name", FIRST_VARIANTS)
@pytest.mark.parametrize("kind", program.CHECKS)
def test_each_check_of_each_architecture(kind: str, name: str) -> None:
    runtime.enter()
    result = program.CHECKS[kind](TINY_MODELS[name])
    assert result["passed"], result


def test_a_failed_step_is_recorded_and_tried_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    steps: list[program.Step] = [("broken", lambda: {"ratio": 1 / 0}), ("wrong", lambda: {"passed": False})]
    later = time.monotonic() + 60
    assert program.run(steps, record, later) == 0
    assert program.summarise(steps, record, 0) == 1
    again = Record(tmp_path / "gpu.json")
    assert "ZeroDivisionError" in again.steps["broken"]["error"]
    assert not again.is_done("broken") and again.is_done("wrong")
    assert "failed: broken" in gpu_page(again.path)


def test_time_that_is_over_leaves_steps(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    assert program.run([("one", dict), ("two", dict)], record, time.monotonic() - 1) == 2
    assert record.steps == {}


def test_results_of_other_code_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    Record(path).add("one", {"passed": True})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "environment": {**content["environment"], "code": "other"}}))
    assert not Record(path).is_continued
