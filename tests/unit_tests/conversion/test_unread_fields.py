"""Which config fields a family may ignore: never one that transformers reads, whatever its name and value."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig

from megatron.bridge import AutoBridge
from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields import transformers_names, unread
from megatron.bridge.models.hf_pretrained.config import load_config
from tests.tiny_model import TinyModel
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS

TABLE = transformers_names.from_json(transformers_names.TABLE.read_text())
KNOWN = [name for name, tiny in TINY_MODELS.items() if hasattr(transformers, tiny.published_architecture)]
FIRST = [name for name in FIRST_VARIANTS if name in KNOWN]
OTHERS = [pytest.param(name, marks=pytest.mark.proof) for name in KNOWN if name not in FIRST]
# Functions of transformers that go through all fields, whatever their names.
ENUMERATING = ("validate_token_ids",)
GENERATION = set(transformers.GenerationConfig().to_dict())
TOKENS = torch.randint(4, 100, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names that are looked up in any config during the test, whether the config has them or not."""
    names: set[str] = set()
    look_up = PretrainedConfig.__getattribute__

    def recorded(config: PretrainedConfig, name: str) -> Any:
        if sys._getframe(1).f_code.co_name not in ENUMERATING and not name.startswith("__"):
            names.add(name)
        return look_up(config, name)

    monkeypatch.setattr(PretrainedConfig, "__getattribute__", recorded)
    yield names


def test_the_table_is_what_the_installed_code_says() -> None:
    """If not: `make docs`."""
    assert transformers_names.find_names(TABLE.models) == TABLE


@pytest.mark.parametrize("name", [*FIRST, *OTHERS])
def test_no_field_that_is_read_may_be_ignored(name: str, reads: set[str]) -> None:
    """Each field that transformers looks up as it builds and runs a model, as if its class did not declare it."""
    model = TINY_MODELS[name].hf_model()
    with torch.no_grad():
        model(TOKENS, labels=TOKENS)
    config, read = model.config, set(reads)
    assert len(read) > 40 and {"hidden_size", "vocab_size"} <= read
    # What these may not change is shown below.
    excepted = {*unread._HARMLESS, *(() if hasattr(type(config), "rope_parameters") else unread._OF_ROPE)}
    for field in sorted(read - excepted):
        for value in ("something", True, 3, 1.5):
            assert unread.undeclared_objection(config, field, value, config), f"{field} = {value!r}"


# One value is enough for most models.
NEUTRAL = [
    *((name, []) for name in FIRST),
    *(pytest.param(*param.values, [], marks=param.marks) for param in OTHERS),
    *((name, value) for name in {"llama": None, **dict.fromkeys(FIRST[::4])} for value in (False, 0, "")),
]


@pytest.mark.parametrize(("name", "value"), NEUTRAL, ids=str)
def test_what_is_ignored_changes_nothing(name: str, value: object) -> None:
    """All fields of all models that may have this value, and what may have any, at once: the same logits."""
    tiny = TINY_MODELS[name]
    config, fields = tiny.hf_config(), dict.fromkeys(TABLE.declared - GENERATION, value)
    fields |= {"some_new_switch": True, "gradient_checkpointing": True, "model_max_length": 8, "sep_token_id": 5}
    fields |= {"rope_theta": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    ignored = {field: value for field, value in fields.items() if not unread.objection(config, field, value)}
    assert len(ignored) > 1500
    changed = type(config)(**{**config.to_dict(), **ignored})
    with torch.no_grad():
        assert torch.equal(_logits(tiny, changed), _logits(tiny, tiny.hf_config()))


def _logits(tiny: TinyModel, config: PretrainedConfig) -> torch.Tensor:
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return getattr(transformers, tiny.architecture)(config).float().eval()(TOKENS).logits


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
# Fields that published configs of these models have, with their values.
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"use_mrope": False}),
    ("qwen3", {"tokenizer": "qwen2"}),
    ("qwen3-moe", {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True}),
    ("qwen3-next", {"use_sliding_window": False}),
    ("llama", {"sequence_parallel_enabled": False, "selective_checkpoint_enabled": False}),
    ("llama", {"internal_version": "7b-alpha-v2.33.0.30", "max_sequence_length": 32768, "tokenizer_class": "X"}),
    ("llama", {"model_max_length": 2048, "gradient_checkpointing": True, "use_flash_attn": True, "pad_token": "<p>"}),
    ("llama", {"neftune_noise_alpha": 5.0, "_model_name_or_path": "x", "temperature": 0.6, "do_sample": True}),
    ("mistral", {"torchscript": False, "pruned_heads": {}, "is_decoder": False, "add_cross_attention": False}),
    ("mixtral", {"moe_frequency": 1, "use_flash_attention": True}),
    ("nemotron-h", {"norm_eps": 1e-5, "rope_theta": 10000, "rms_norm_eps": 1e-5, "time_step_rank": 512}),
    ("phi", {"attention_bias": False, "rotary_dim": 8}),
    ("deepseek-v3", {"num_routed_experts": 16, "num_shared_experts": 2}),
]


@pytest.mark.parametrize(("name", "fields"), PUBLISHED, ids=[f"{name}-{next(iter(row))}" for name, row in PUBLISHED])
def test_published_fields_are_accepted(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    TINY_MODELS[name].hf_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    AutoBridge.from_hf_config(load_config(tmp_path)).to_megatron_provider(load_weights=False).finalize()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"norm_eps": 1e-3}, "norm_eps = 0.001: .*contradicts rms_norm_eps = 1e-06"),
    ("llama", {"tie_weights": True}, "contradicts tie_word_embeddings = False"),
    ("llama", {"rotary_base": 5e5}, "contradicts rope_theta = 10000.0"),
    ("llama", {"num_experts": 8}, "code that all models of transformers share mentions it"),
    ("llama", {"sliding_window": 8}, "code that all models of transformers share mentions it"),
    ("llama", {"is_causal": False}, "transformers' code for this model mentions it"),
    ("llama", {"use_qk_norm": True}, "other models of transformers have this field"),
    ("llama", {"post_attention_layernorm": False}, "transformers' code for this model mentions it"),
    ("llama", {"pad_index": 0, "_tied_weights_keys": 1}, "_tied_weights_keys"),
    ("qwen3-moe", {"use_qk_norm": False}, "use_qk_norm: expected True, found False"),
    ("nemotron-h", {"norm_eps": 1e-6}, "contradicts layer_norm_epsilon = 1e-05"),
    ("phi", {"rotary_dim": 12}, "rotary_dim is 12, but partial_rotary_factor, .* rotates 8 of the 16"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_may_matter_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    config = TINY_MODELS[name].hf_config()
    with pytest.raises(UnsupportedConfigError, match=message):
        AutoBridge.from_hf_config(type(config)(**{**config.to_dict(), **fields})).to_megatron_provider(False)


@pytest.mark.parametrize("rest", ["", "if True print("], ids=["valid", "broken"])
@pytest.mark.parametrize("where", ["config.new_block", "getattr(config, 'new_block', 0)"])
def test_the_code_in_the_folder_is_read_and_not_run(where: str, rest: str, tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    content = {**LLAMA, "auto_map": auto_map, "new_block": 2, "num_attention_heads": 4, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(content))
    code = tmp_path / "modeling_own.py"
    code.write_text('"""new_block."""\nself.new_block = 1  # new_block\nraise SystemExit\n')
    AutoBridge.from_hf_config(load_config(tmp_path)).to_megatron_provider(load_weights=False)
    code.write_text(f"raise SystemExit\nwidth = {where}\n{rest}")
    with pytest.raises(UnsupportedConfigError, match=r"new_block = 2: .*own code mentions it \(modeling_own.py\)"):
        AutoBridge.from_hf_config(load_config(tmp_path)).to_megatron_provider(load_weights=False)


@pytest.mark.parametrize("version", ["5.0.0", transformers.__version__])
def test_what_the_table_does_not_have_is_found_in_the_code(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of transformers, or another model."""
    models = {"llama": frozenset({"old"})} if version == "5.0.0" else {}
    (tmp_path / "table.json").write_text(transformers_names.to_json(TABLE._replace(version=version, models=models)))
    monkeypatch.setattr(transformers_names, "TABLE", tmp_path / "table.json")
    assert transformers_names.names_for.__wrapped__("llama") == TABLE._replace(models={"llama": TABLE.models["llama"]})


def test_a_load_reports_what_was_not_read(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_mrope": False}))
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    bridge.to_megatron_model(wrap_with_ddp=False)
    assert bridge.load_report is not None and bridge.load_report.not_read == {"use_mrope": False}


def test_the_text_model_of_a_whole_model() -> None:
    config = transformers.Gemma3Config(architectures=["Gemma3ForCausalLM"])
    with pytest.raises(UnsupportedConfigError, match="set model_type to 'gemma3_text'"):
        AutoBridge.from_hf_config(config)
