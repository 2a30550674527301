"""Runs the steps that have no result yet, in the order of their worth, while time remains."""

import argparse
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron.bridge import runtime
from megatron.bridge.runtime import capabilities
from tests.tiny_models import ALL_MODELS, FIRST_VARIANTS
from tools.gpu_proof import families, speed
from tools.gpu_proof.record import ROOT, Record

type Step = tuple[str, Callable[[], dict[str, Any]]]
CHECKS = {"float32": families.float32, "bfloat16": families.bfloat16, "gradients": families.gradients}


def main() -> int:
    """Runs the proof; the exit code is 0 if every step has passed."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_proof", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="stop before this time is over (default: 8)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.json", help="the file of results")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with small sizes and few models")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    if args.dry_run == capabilities.has_cuda():
        needs = "is for machines without CUDA" if args.dry_run else "needs a CUDA device; on a CPU, add --dry-run"
        parser.error(f"this {needs} (torch {torch.__version__})")
    runtime.enter()
    record = Record(args.out)
    for name, value in record.environment.items():
        print(f"{name}: {value}")
    if record.is_continued:
        print(f"going on after {len(record.steps)} results in {args.out}")
    steps = list(dry_steps(record) if args.dry_run else all_steps(record))
    left = run(steps, record, deadline)
    return summarise(steps, record, left)


def all_steps(record: Record, is_small: bool = False) -> Iterator[Step]:
    """Speed first, then each architecture's first variant, then the other variants."""
    yield "ceilings", partial(speed.ceilings, is_small)
    yield "training step", lambda: speed.training_step(is_small, record.steps["ceilings"]["matmul_flops_per_s"])
    yield "rates", partial(speed.rates, is_small)
    names = [*FIRST_VARIANTS, *(name for name in ALL_MODELS if name not in FIRST_VARIANTS)]
    for name in names:
        for kind, check in CHECKS.items():
            if kind == "gradients" and name not in FIRST_VARIANTS:
                continue
            yield f"{kind} of {name}", partial(check, ALL_MODELS[name])


def dry_steps(record: Record) -> Iterator[Step]:
    """The same steps with small sizes, and of the families two."""
    for name, step in all_steps(record, is_small=True):
        if " of " not in name or name.endswith((" of llama", " of qwen3-moe")):
            yield name, step


def run(steps: list[Step], record: Record, deadline: float) -> int:
    """Runs the steps that have no result while there is time; how many are left.

    No step begins that, if it took as long as the longest of its kind so far, would end too late.
    """
    longest: dict[str, float] = {}
    todo = [(name, step) for name, step in steps if not record.is_done(name)]
    for number, (name, step) in enumerate(todo):
        kind = name.split(" of ")[0]
        start = time.monotonic()
        if start + longest.get(kind, 0) > deadline:
            return len(todo) - number
        try:
            result = step()
        except Exception as error:  # a step that fails says so, and the next ones run
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            result = {"error": f"{type(error).__name__} at {at}: {error}", "passed": False}
        seconds = time.monotonic() - start
        longest[kind] = max(seconds, longest.get(kind, 0))
        record.add(name, {**result, "seconds": round(seconds, 2)})
        print(f"[{number + 1}/{len(todo)}] {name}: {shown(result)} ({seconds:.1f} s)", flush=True)
    return 0


def shown(result: dict[str, Any]) -> str:
    """One line of a result."""
    mark = "" if result.get("passed", True) else "FAILED "
    values = {key: value for key, value in result.items() if key != "passed"}
    return mark + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def summarise(steps: list[Step], record: Record, left: int) -> int:
    """Prints what failed and what is left; the exit code."""
    failed = [name for name, _ in steps if not record.steps.get(name, {}).get("passed", True)]
    done = len(steps) - left - len(failed)
    print(f"{done} steps passed, {len(failed)} failed, {left} left for the next run: {record.path}")
    for name in failed:
        print(f"  failed: {name}")
    return 1 if failed or left else 0
