"""Kimi-K2: DeepSeek-V3 under a model type that only the folder's own code knows, which is not needed."""

import json
from pathlib import Path

from megatron.bridge import AutoBridge
from tests.parity import changed_tensors
from tests.tiny_models import TINY_MODELS


def test_no_remote_code_is_needed(tmp_path: Path) -> None:
    TINY_MODELS["deepseek-v3"].save(tmp_path / "hf")
    expected = AutoBridge.from_hf_pretrained(tmp_path / "hf").to_megatron_provider(load_weights=False)
    path = tmp_path / "hf" / "config.json"
    values = json.loads(path.read_text())
    values["model_type"] = "kimi_k2"
    values["auto_map"] = {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
    path.write_text(json.dumps(values))

    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    assert bridge.to_megatron_provider(load_weights=False) == expected
    bridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == values
