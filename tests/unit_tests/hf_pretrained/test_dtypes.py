"""The dtype that a caller asks for: both names of the argument, as dtypes and as names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError
from megatron.bridge.models.hf_pretrained.dtypes import requested_dtype

ASKED = [
    {"dtype": torch.float32},
    {"torch_dtype": torch.float32},
    {"dtype": "float32"},
    {"torch_dtype": "torch.float32"},
    {"dtype": "float32", "torch_dtype": torch.float32},
]
REFUSED = [
    ({"dtype": "bfloat16", "torch_dtype": torch.float16}, r"dtype=bfloat16 and torch_dtype=torch\.float16"),
    ({"dtype": "auto", "torch_dtype": torch.float16}, "two names of one argument"),
    ({"dtype": "bf17"}, "dtype='bf17'"),
    ({"torch_dtype": "int8"}, "torch_dtype='int8'"),
    ({"dtype": "save"}, "expected .auto., or a floating-point dtype"),
    ({"dtype": 16}, "dtype=16"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=str)
def test_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(BridgeError, match=message):
        requested_dtype(**asked)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_megatron_model_has_it(llama_folder: Path, asked: dict[str, object]) -> None:
    assert AutoBridge.from_hf_pretrained(llama_folder, **asked).to_megatron_provider().params_dtype == torch.float32


@pytest.mark.parametrize("asked", [{}, {"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
def test_by_default_it_is_the_checkpoints(llama_folder: Path, asked: dict[str, object]) -> None:
    bridge = AutoBridge.from_hf_pretrained(llama_folder, **asked)
    assert bridge.to_megatron_provider().params_dtype == torch.bfloat16
    assert bridge.hf_pretrained.model.dtype == torch.bfloat16


@pytest.mark.parametrize("asked", ASKED[1:3], ids=str)
def test_conversions_take_it(llama_folder: Path, tmp_path: Path, asked: dict[str, object]) -> None:
    """On import, on export, and as the dtype of the bridge that imports."""

    def exported(name: str, **dtype: object) -> dict[str, torch.Tensor]:
        bridge.export_ckpt(tmp_path / name, tmp_path / f"{name}-hf", **dtype)
        return load_file(tmp_path / f"{name}-hf/model.safetensors")

    bridge = AutoBridge.from_hf_pretrained(llama_folder)
    AutoBridge.import_ckpt(llama_folder, tmp_path / "asked", **asked)
    AutoBridge.import_ckpt(llama_folder, tmp_path / "plain")
    AutoBridge.from_hf_pretrained(llama_folder, **asked).write_megatron_checkpoint(tmp_path / "of-bridge")
    wide = [exported("asked"), exported("of-bridge"), exported("plain", **asked)]
    stored = load_file(llama_folder / "model.safetensors")
    for tensors in wide:
        assert {name: tensor.dtype for name, tensor in tensors.items()} == dict.fromkeys(stored, torch.float32)
        assert all(torch.equal(tensors[name], tensor.float()) for name, tensor in stored.items())
