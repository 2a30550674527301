"""`docs/gpu.md`: what the results in `docs/gpu.json` say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.tiny_models import ALL_MODELS

_INTRODUCTION = """# On a GPU

Made by `make docs` from the results of `make gpu-proof`, which runs on a machine with one CUDA GPU, in at most 8
minutes; run again, it goes on where it stopped. It needs no network: where the packages of `pyproject.toml` are
installed, `make gpu-proof PYTHON=python3` runs without uv. Transformer Engine is used if it is installed.

Every family is compared with transformers on the same GPU, on tiny models with random weights: logits in float32 (at
most 1e-5 off, or twice as much as transformers' own float32 is off from its float64), the export bit for bit, greedy
tokens, gradients, and logits in bfloat16 (at most twice as far from transformers' float64 as transformers' bfloat16
is). Speed and memory are those of a model of 1.5 B parameters, beside transformers and plain copies of the same bytes.
"""
_NOT_RUN = "It has not been run on a GPU yet: nothing here is measured."


def gpu_page(results: Path) -> str:
    """The page, from a file of results that may not exist."""
    if not results.is_file():
        return f"{_INTRODUCTION}\n{_NOT_RUN}\n"
    content = json.loads(results.read_text())
    steps = content["steps"]
    parts = [_INTRODUCTION, *_table(("", ""), content["environment"].items()), ""]
    failed = sorted(name for name, step in steps.items() if not step.get("passed", True))
    parts.append(f"{len(steps) - len(failed)} of {len(steps)} steps passed.")
    parts += [f"- failed: {name}" for name in failed]
    for title, key, rows in (("A training step", "training step", _training_rows), ("In and out", "rates", _rate_rows)):
        if "error" not in steps.get(key, {"error": ""}):
            header, *lines = rows(steps)
            parts += ["", f"## {title}", "", *_table(header, lines)]
    parts += ["", "## Families", "", *_table(_FAMILY_HEADER, _family_rows(steps))]
    return "\n".join(parts) + "\n"


_FAMILY_HEADER = (
    "model", "logits, float32", "allowed", "export", "tokens", "gradients", "bfloat16, from float64", "transformers'"
)  # fmt: skip


def _family_rows(steps: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    for name in ALL_MODELS:
        exact, half, gradients = (steps.get(f"{kind} of {name}", {}) for kind in ("float32", "bfloat16", "gradients"))
        if not (exact or half or gradients):
            continue
        export = "" if "changed" not in exact else "changed" if exact["changed"] else "same bits"
        yield (
            name, exact.get("max_diff", exact.get("error", "")), exact.get("tolerance", ""), export,
            exact.get("same_tokens", ""), gradients.get("max_diff", gradients.get("error", "")),
            half.get("distance", half.get("error", "")), half.get("hf_distance", ""),
        )  # fmt: skip


def _training_rows(steps: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    step = steps["training step"]
    yield (f"{step['batch_size']} x {step['seq_length']} tokens", "Megatron-Core", "transformers")
    for label, key, scale in (
        ("forward and backward, ms", "forward_backward_s", 1e3), ("with the optimizer, ms", "step_s", 1e3),
        ("tokens/s", "tokens_per_s", 1), ("TFLOP/s", "flops_per_s", 1e-12),
        ("of the rate of a matrix product, %", "share_of_matmul_rate", 100), ("peak memory, GB", "peak_bytes", 1e-9),
    ):  # fmt: skip
        yield (label, *(step[who].get(key, 0) * scale for who in ("megatron", "transformers")))


def _rate_rows(steps: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    rates = steps["rates"]
    yield (f"{rates['bytes'] / 1e9:.2f} GB", "GB/s", "peak memory, GB")
    for action, rate in rates["bytes_per_s"].items():
        yield (action, rate / 1e9, rates["peak_bytes"][action] / 1e9)


def _table(header: tuple[object, ...], rows: Any) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("\n", " ")
