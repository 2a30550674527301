"""Configs of any shape give a report or a `BridgeError`, never another exception or a long wait."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from megatron.bridge.discovery import inspect_model
from megatron.bridge.discovery.pages.html_page import html_page
from megatron.bridge.discovery.pages.text_page import text_page
from megatron.bridge.errors import BridgeError
from tests.shares import shares
from tests.tiny_models import TINY_MODELS

VALUES = ("x", 0, 10**12, ["x", 1], {"x": {"y": 1}}, 1.5)
ADDED = (
    "quantization_config", "text_config", "vision_config", "thinker_config",
    "auto_map", "layers_block_type", "moe_layers",
)  # fmt: skip


@shares
@pytest.mark.parametrize("loadable", [True, False])
def test_any_value_of_any_field(loadable: bool, every: int, tmp_path: Path) -> None:
    TINY_MODELS["deepseek-v3"].save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if not loadable:
        config |= {"model_type": "unheard_of"}
    num_reports = 0
    cases = [
        (number, field, value)
        for number, field in enumerate((*config, *ADDED))
        for shift, value in enumerate(VALUES)
        if (number + shift) % every == 0
    ]
    for number, field, value in cases:
        path.write_text(json.dumps({**config, field: value}))
        try:
            report = inspect_model(path if number % 2 else tmp_path)
        except BridgeError:
            continue
        num_reports += 1
        json.dumps(report.to_dict())
        html_page(report)
        Console(width=80, quiet=True).print(text_page(report))
    assert num_reports > 200 // every
