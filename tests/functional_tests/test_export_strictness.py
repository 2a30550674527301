"""Where an export differs from its source: what is refused, what is written, and what is said about it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron.bridge import AutoBridge
from megatron.bridge.errors import PlanError, UnsupportedConfigError
from megatron.bridge.models.live_checkpoint import save_megatron_model
from tests.functional_tests.test_multi_token_prediction import save_with_prediction_layer
from tests.tiny_models import TINY_MODELS


def build(bridge: AutoBridge, **fields: Any) -> list[Any]:
    provider: Any = bridge.to_megatron_provider()
    for name, value in fields.items():
        setattr(provider, name, value)
    return provider.provide_distributed_model(wrap_with_ddp=False)


def live(bridge: AutoBridge, model: list[Any], folder: Path, **options: Any) -> None:
    bridge.save_hf_pretrained(model, folder, **options)


def offline(bridge: AutoBridge, model: list[Any], folder: Path, **options: Any) -> None:
    """By way of a checkpoint."""
    checkpoint = folder.parent / f"{folder.name}-checkpoint"
    save_megatron_model(model, checkpoint)
    bridge.export_ckpt(checkpoint, folder, **options)


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


both = pytest.mark.parametrize("export", [live, offline])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "hf"
    TINY_MODELS["llama"].save(folder, torch.bfloat16)
    return folder


@both
def test_a_changed_field(llama: Path, tmp_path: Path, export: Any) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    model = build(bridge, rotary_base=500000.0)
    with pytest.raises(
        PlanError, match=r"config\.json rope_parameters: .*10000\.0.* in the source, .*500000\.0"
    ) as caught:
        export(bridge, model, tmp_path / "strict", strict=True)
    assert "strict=False" in str(caught.value) and not (tmp_path / "strict" / "model.safetensors").exists()
    for name, options in {"default": {}, "not strict": {"strict": False}}.items():
        export(bridge, model, tmp_path / name, **options)
        assert config_of(tmp_path / name)["rope_parameters"]["rope_theta"] == 500000.0
        assert list(bridge.export_report.changed_fields) == ["rope_parameters"]


@both
@pytest.mark.parametrize(
    ("field", "value"), [("normalization", "LayerNorm"), ("add_qkv_bias", True), ("softmax_scale", 0.1)]
)
def test_what_no_config_can_say(llama: Path, tmp_path: Path, export: Any, field: str, value: object) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    provider: Any = bridge.to_megatron_provider(load_weights=False)
    setattr(provider, field, value)
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    for strict in (None, True, False):
        with pytest.raises(UnsupportedConfigError, match=f"{field}"):
            export(bridge, model, tmp_path / str(strict), strict=strict)
        assert not (tmp_path / str(strict) / "config.json").exists()


@both
def test_settings_of_a_run_are_not_the_model(llama: Path, tmp_path: Path, export: Any) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    model = build(bridge, attention_dropout=0.3, hidden_dropout=0.2, init_method_std=0.5, seq_length=32)
    export(bridge, model, tmp_path / "out", strict=True)
    assert (tmp_path / "out" / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    assert not bridge.export_report.lines()


def test_a_longer_context_is_stated(llama: Path, tmp_path: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    bridge.save_hf_pretrained(build(bridge, seq_length=1024), tmp_path)
    assert config_of(tmp_path)["max_position_embeddings"] == 1024


@both
def test_the_config_of_another_source(llama: Path, tmp_path: Path, export: Any) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    model = build(bridge)
    other = tmp_path / "other"
    TINY_MODELS["llama"].save(other)
    (other / "config.json").write_text(json.dumps({**config_of(other), "rms_norm_eps": 0.5, "bos_token_id": 7}))
    with pytest.raises(PlanError, match=r"rms_norm_eps: 0\.5 in the source, 1e-06 in the model"):
        export(bridge, model, tmp_path / "strict", source_path=other, strict=True)
    export(bridge, model, tmp_path / "out", source_path=other)
    stated = config_of(tmp_path / "out")
    assert (stated["rms_norm_eps"], stated["bos_token_id"], stated["dtype"]) == (1e-6, 7, "bfloat16")
    TINY_MODELS["qwen3"].save(tmp_path / "qwen3")
    with pytest.raises(UnsupportedConfigError, match=r"Qwen3ForCausalLM.* is not that of the model"):
        export(bridge, model, tmp_path / "refused", source_path=tmp_path / "qwen3", strict=False)


def test_the_dtype_is_that_of_the_written_weights(llama: Path, tmp_path: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama)
    model = build(bridge)
    bridge.save_hf_pretrained(model, tmp_path / "live", weight_dtype=torch.float32, strict=True)
    bridge.write_megatron_checkpoint(tmp_path / "checkpoint")
    bridge.export_ckpt(tmp_path / "checkpoint", tmp_path / "offline", torch_dtype=torch.float32, strict=True)
    for name in ("live", "offline"):
        assert {str(tensor.dtype) for tensor in load_file(tmp_path / name / "model.safetensors").values()} == {
            "torch.float32"
        }
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name).dtype == torch.float32


@both
@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-next"])  # whose config counts prediction layers, or does not
def test_prediction_layers_that_the_model_does_not_have(name: str, tmp_path: Path, export: Any) -> None:
    save_with_prediction_layer(name, tmp_path / "hf")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = build(bridge, mtp_num_layers=None)
    before = load_file(tmp_path / "hf" / "model.safetensors")
    projection = next(tensor for tensor in before if tensor.endswith(("eh_proj.weight", "mtp.fc.weight")))
    with pytest.raises(PlanError, match=rf"HF tensor {projection}: lost"):
        export(bridge, model, tmp_path / "strict", strict=True)
    for folder, options in {"default": {}, "not-strict": {"strict": False}}.items():
        export(bridge, model, tmp_path / folder, **options)
        after = load_file(tmp_path / folder / "model.safetensors")
        assert projection in bridge.export_report.lost
        assert not any("layers.4." in tensor or "mtp." in tensor for tensor in after)
        assert config_of(tmp_path / folder).get("num_nextn_predict_layers", 0) == 0
    export(bridge, build(bridge), tmp_path / "whole", strict=True)
    assert load_file(tmp_path / "whole" / "model.safetensors").keys() == before.keys()
