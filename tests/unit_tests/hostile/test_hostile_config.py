"""`config.json` with values of every wrong kind, through the whole import: an error that names the model, or the same
checkpoint as without the change."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge import AutoBridge
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.verification import verify_checkpoints
from tests.tiny_models import TinyModel
from tests.unit_tests.hostile.attempts import attempt, must_fail

TINY = TinyModel("tiny", "LlamaForCausalLM", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48})

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    10**12,
    10**400,
    0.5,
    float("nan"),
    "64",
    "x" * 1000,
    [],
    ["full_attention"] * 3,
    {},
    {"rope_type": "yarn", "factor": "4"},
    {"_target_": "os.system", "a": {"b": [None]}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder `hf` and its import `megatron`."""
    folder = tmp_path_factory.mktemp("config")
    TINY.save(folder / "hf")
    AutoBridge.import_ckpt(folder / "hf", folder / "megatron")
    return folder


FIELDS = [
    "architectures",
    "attention_bias",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_encoder_decoder",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pretraining_tp",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "unheard_of",
    "vocab_size",
]


@pytest.mark.parametrize("field", FIELDS)
def test_field(field: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # durability is not the matter here
    folder = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    config = json.loads((folder / "config.json").read_text())
    for index, value in enumerate(VALUES):
        (folder / "config.json").write_text(json.dumps({**config, field: value}))
        out = tmp_path / str(index)
        if attempt(lambda out=out: AutoBridge.import_ckpt(folder, out), folder) is None:
            assert verify_checkpoints(model / "megatron", out).equal
            shutil.rmtree(out)
        assert not list(tmp_path.glob(f".{index}.*"))


FILES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "number": b"1",
    "list": b"[]",
    "string": b'"LlamaForCausalLM"',
    "object": b"{}",
    "open": b"{",
    "not UTF-8": b'{"model_type": "\xff"}',
    "NUL bytes": bytes(100),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "unknown type": b'{"model_type": "nothing", "architectures": ["NothingForCausalLM"]}',
    "no architecture": b'{"model_type": "llama"}',
    "architecture a string": b'{"model_type": "llama", "architectures": "LlamaForCausalLM"}',
    "architecture a number": b'{"model_type": "llama", "architectures": 1}',
    "architectures of numbers": b'{"model_type": "llama", "architectures": [1, null]}',
    "architectures of lists": b'{"model_type": "llama", "architectures": [["LlamaForCausalLM"]]}',
    "another architecture": b'{"model_type": "llama", "architectures": ["BertModel"]}',
    "remote code": b'{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}, "architectures": ["A"]}',
    "remote code of another": b'{"model_type": "mine", "auto_map": {"AutoConfig": "evil/repo--code.Config"}}',
    "map a list": b'{"model_type": "mine", "auto_map": ["code.Config"]}',
    "type a list": b'{"model_type": ["llama"]}',
    "type an object": b'{"model_type": {"llama": 1}}',
    "type a number": b'{"model_type": 5}',
}


@pytest.mark.parametrize("name", FILES)
def test_file(name: str, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    (folder / "config.json").write_bytes(FILES[name])
    (folder / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\n")
    must_fail(lambda: AutoBridge.import_ckpt(folder, tmp_path / "out"), folder)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


GENERATION_CONFIGS = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "open": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "wrong kinds": b'{"max_new_tokens": "many", "temperature": []}',
    "temperature an object": b'{"temperature": {}}',
    "tokens an object": b'{"eos_token_id": {"a": 1}}',
    "cache an object": b'{"cache_implementation": {}}',
    "strings": b'{"stop_strings": 5, "do_sample": "yes"}',
}


@pytest.mark.parametrize("name", GENERATION_CONFIGS)
def test_generation_config(name: str, model: Path, tmp_path: Path) -> None:
    """It is refused where it is used, or means something to transformers; a conversion only copies it."""
    folder = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    path = folder / "generation_config.json"
    path.write_bytes(GENERATION_CONFIGS[name])
    attempt(lambda: PreTrainedCausalLM.from_pretrained(folder).generation_config, path)
    AutoBridge.import_ckpt(folder, tmp_path / "out")
    copied = tmp_path / "out" / "iter_0000000" / "tokenizer" / "generation_config.json"
    assert copied.read_bytes() == GENERATION_CONFIGS[name]
