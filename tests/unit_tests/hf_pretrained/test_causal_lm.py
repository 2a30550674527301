import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron.bridge.errors import CheckpointError, UnsupportedConfigError
from megatron.bridge.models.hf_pretrained import PreTrainedCausalLM
from tests.unit_tests.hf_pretrained.samples import tiny_llama


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A Llama folder with a tokenizer and a generation config."""
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"hello": 0, "world": 1, "<unk>": 2}, unk_token="<unk>")),
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    GenerationConfig(max_new_tokens=5).save_pretrained(folder)
    return folder


def test_light_until_asked(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{")
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder)
    assert hf_pretrained.config.model_type == "llama"
    assert hf_pretrained.path == folder
    assert hf_pretrained.model_name_or_path == str(folder)
    assert hf_pretrained.repo_id is None
    assert hf_pretrained.trust_remote_code is False
    assert "LlamaConfig" in repr(hf_pretrained)
    with pytest.raises(CheckpointError, match=rf"{folder}: no tokenizer that transformers can load"):
        _ = hf_pretrained.tokenizer
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        _ = hf_pretrained.state


def test_parts(folder: Path) -> None:
    hf_pretrained = PreTrainedCausalLM.from_pretrained(str(folder))
    assert hf_pretrained.has_weights
    assert set(hf_pretrained.state) == set(load_file(folder / "model.safetensors"))
    assert hf_pretrained.state is hf_pretrained.state
    assert hf_pretrained.tokenizer.convert_tokens_to_ids(["world", "hello"]) == [1, 0]
    assert hf_pretrained.generation_config.max_new_tokens == 5
    (folder / "generation_config.json").unlink()
    assert PreTrainedCausalLM.from_pretrained(folder).generation_config is None


def test_names_of_tensors_need_no_weight_files_where_there_is_an_index(folder: Path, tmp_path: Path) -> None:
    assert set(PreTrainedCausalLM.from_pretrained(folder).tensor_names) == set(load_file(folder / "model.safetensors"))
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    expected = set(PreTrainedCausalLM.from_pretrained(tmp_path / "shards").state)
    weights = list((tmp_path / "shards").glob("*.safetensors"))
    assert len(weights) > 1
    for path in weights:
        path.unlink()
    hf_pretrained = PreTrainedCausalLM.from_pretrained(tmp_path / "shards")
    assert set(hf_pretrained.tensor_names) == expected
    with pytest.raises(CheckpointError, match="files are absent"):
        _ = hf_pretrained.state


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_model_is_the_one_that_transformers_loads(folder: Path, dtype: torch.dtype | None) -> None:
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder, dtype=dtype)
    before = hf_pretrained.config.to_dict()
    model = hf_pretrained.model
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.bfloat16)
    assert isinstance(model, LlamaForCausalLM) and not model.training
    assert model.dtype == (dtype or torch.bfloat16)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert hf_pretrained.config.to_dict() == before


def test_model_with_a_missing_weight(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM at their random .*: model\.norm\.weight"):
        _ = PreTrainedCausalLM.from_pretrained(folder).model


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    hf_pretrained = PreTrainedCausalLM.from_pretrained(tmp_path)
    assert "lm_head.weight" not in hf_pretrained.state
    embedding = hf_pretrained.state["model.embed_tokens.weight"]
    assert torch.equal(hf_pretrained.model.lm_head.weight, embedding)


def test_config_overrides(folder: Path) -> None:
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder, num_hidden_layers=1)
    assert hf_pretrained.config.num_hidden_layers == 1
    with pytest.raises(UnsupportedConfigError, match="no field 'num_layerz'"):
        PreTrainedCausalLM.from_pretrained(folder, num_layerz=1)


def test_artifacts_keep_the_config_byte_for_byte_unless_changed(folder: Path, tmp_path: Path) -> None:
    config_json = json.loads((folder / "config.json").read_text())
    text = json.dumps(config_json | {"note": "kept"}, indent=7)
    (folder / "config.json").write_text(text)
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder)
    written = hf_pretrained.save_artifacts(tmp_path / "same")
    assert written == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert (tmp_path / "same" / "config.json").read_text() == text

    hf_pretrained.config.num_hidden_layers = 1
    hf_pretrained.save_artifacts(tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "config.json").read_text())["num_hidden_layers"] == 1

    PreTrainedCausalLM.from_pretrained(folder, rms_norm_eps=0.5).save_artifacts(tmp_path / "overridden")
    assert json.loads((tmp_path / "overridden" / "config.json").read_text())["rms_norm_eps"] == 0.5


def test_config_may_be_replaced(folder: Path, tmp_path: Path) -> None:
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder)
    replaced = PreTrainedCausalLM.from_pretrained(folder, vocab_size=99).config
    hf_pretrained.config = replaced
    hf_pretrained.save_artifacts(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 99


@pytest.mark.parametrize("text", ["{", '{"max_new_tokens": "many"}', "[]"])
def test_malformed_generation_config(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: transformers refuses it"):
        _ = PreTrainedCausalLM.from_pretrained(folder).generation_config


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    hf_pretrained = PreTrainedCausalLM.from_pretrained(folder)
    assert not hf_pretrained.has_weights
    with pytest.raises(CheckpointError, match=f"{folder}: no weights"):
        _ = hf_pretrained.state
