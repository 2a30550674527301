import json
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest
from transformers import AutoConfig, DeepseekV3Config, LlamaConfig, Qwen3Config

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError, CheckpointError, UnsupportedConfigError, UnsupportedModelError
from megatron.bridge.models.hf_pretrained.config import load_config, read_config_json
from tests.programs import TIMEOUT

CUSTOM_CODE = """
from transformers import PretrainedConfig

class StrangeConfig(PretrainedConfig):
    model_type = "strange"

    def __init__(self, knobs=3, **kwargs):
        self.knobs = knobs
        super().__init__(**kwargs)
"""


def write(folder: Path, values: object) -> Path:
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_loads_as_auto_config(llama_folder: Path) -> None:
    config = load_config(llama_folder)
    assert isinstance(config, LlamaConfig)
    assert config.to_dict() == AutoConfig.from_pretrained(llama_folder).to_dict()
    assert read_config_json(llama_folder) == json.loads((llama_folder / "config.json").read_text())


def test_reading_the_json_imports_nothing_heavy(llama_folder: Path) -> None:
    code = (
        "import sys; from megatron.bridge.models.hf_pretrained.config import read_config_json\n"
        "import megatron.bridge.models.hf_pretrained\n"
        f"print(read_config_json({str(llama_folder)!r})['model_type'],"
        " [name for name in ('torch', 'transformers', 'huggingface_hub', 'safetensors') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert result.stdout.strip() == "llama []"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("{", CheckpointError, r"config\.json: malformed JSON"),
        ("[1]", CheckpointError, r"config\.json: expected a JSON object, found list"),
        ({"model_type": "qwen99"}, UnsupportedModelError, "has the model_type 'qwen99'"),
        ({"hidden_size": 4}, UnsupportedModelError, "has no `model_type`"),
        ({"model_type": "qwen3", "hidden_size": "big"}, UnsupportedConfigError, "hidden_size"),
        ({"model_type": "mixtral", "num_local_experts": 10**12}, UnsupportedConfigError, "num_local_experts must be"),
        (
            {"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention"]},
            UnsupportedConfigError,
            "layer_types",
        ),
    ],
)
def test_bad_configs(tmp_path: Path, values: object, error: type[BridgeError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        load_config(write(tmp_path, values))
    assert str(tmp_path / "config.json") in str(raised.value)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no config\.json"):
        load_config(tmp_path)


def test_custom_code_runs_only_with_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write(tmp_path, {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}})
    with pytest.raises(
        UnsupportedModelError, match=r"configuration_strange\.StrangeConfig.*'strange'.*trust_remote_code=True"
    ):
        load_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"configuration_strange\.py"):  # the code itself is absent
        load_config(tmp_path, trust_remote_code=True)
    (tmp_path / "configuration_strange.py").write_text(CUSTOM_CODE)
    assert load_config(tmp_path, trust_remote_code=True).knobs == 3


def test_custom_code_that_transformers_does_not_need_is_not_run(tmp_path: Path) -> None:
    write(tmp_path, {"model_type": "qwen3", "auto_map": {"AutoConfig": "configuration_qwen3.Qwen3Config"}})
    (tmp_path / "configuration_qwen3.py").write_text("raise SystemExit")
    assert type(load_config(tmp_path)) is Qwen3Config


KIMI = {
    "model_type": "kimi_k2",
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "rope_theta": 50000.0,
    "rope_scaling": {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 1.0},
    "n_group": 1,
}


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_model_type_that_is_stated_to_be_another(tmp_path: Path, trust_remote_code: bool) -> None:
    folder = write(tmp_path, KIMI)
    (tmp_path / "configuration_deepseek.py").write_text("raise SystemExit")
    config = load_config(folder, trust_remote_code=trust_remote_code, overrides={"num_hidden_layers": 7})
    assert type(config) is DeepseekV3Config
    assert (config.n_group, config.num_hidden_layers, config.name_or_path) == (1, 7, str(folder))
    assert (config.rope_parameters["rope_theta"], config.rope_parameters["factor"]) == (50000.0, 32.0)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "kimi_k3"},
        {"model_type": "kimi_k2", "architectures": ["AnotherForCausalLM"]},
        {"model_type": "kimi_k2", "architectures": "DeepseekV3ForCausalLM"},
    ],
    ids=str,
)
def test_no_other_model_type_is_taken_for_a_known_one(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModelError, match="trust_remote_code=True"):
        load_config(write(tmp_path, {**KIMI, **values}))


def test_an_architecture_that_megatron_core_cannot_compute(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]})
    with pytest.raises(UnsupportedModelError, match=r"DeepseekV4ForCausalLM cannot be converted: .*hyper-connections"):
        AutoBridge.from_hf_pretrained(folder)


def test_overrides_reach_derived_values(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 64})
    config = load_config(folder, overrides={"num_hidden_layers": 2, "rope_parameters": {"rope_theta": 5.0}})
    assert (config.num_hidden_layers, len(config.layer_types), config.hidden_size) == (2, 2, 64)
    assert config.rope_parameters["rope_theta"] == 5.0


def test_overrides_of_a_nested_config_keep_the_rest(tmp_path: Path) -> None:
    text = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 4}
    folder = write(tmp_path, {"model_type": "llava", "text_config": text})
    config = load_config(folder, overrides={"text_config": {"num_hidden_layers": 2}})
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("qwen2", 64)
    assert config.text_config.num_hidden_layers == 2


YARN = {"rope_type": "yarn", "factor": 4.0}
LENGTH = {"original_max_position_embeddings": 4096}
# One file in the form of transformers 4 and one in that of transformers 5, of the same model.
ROPES: list[dict[str, object]] = [
    {"rope_theta": 1e6, "rope_scaling": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
]


@pytest.mark.parametrize("stated", ROPES, ids=["older", "newer"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, {**YARN, **LENGTH, "rope_theta": 1e6}),
        ({"rope_parameters": YARN}, {**YARN, **LENGTH, "rope_theta": 1e6}),
        ({"rope_scaling": YARN, "rope_theta": 5e5}, {**YARN, **LENGTH, "rope_theta": 5e5}),
        ({"rope_parameters": {**YARN, "rope_theta": 5e5}, "rope_theta": 5e5}, {**YARN, **LENGTH, "rope_theta": 5e5}),
        # the length that the model was trained for is the file's, and not the override's
        ({"rope_scaling": YARN, "max_position_embeddings": 16384}, {**YARN, **LENGTH, "rope_theta": 1e6}),
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
    ],
    ids=str,
)
def test_overrides_of_a_rope_keep_the_rest(
    tmp_path: Path, stated: dict[str, object], overrides: dict[str, object], expected: dict[str, object]
) -> None:
    folder = write(tmp_path, {"model_type": "qwen3", "max_position_embeddings": 4096, **stated})
    config = load_config(folder, overrides=overrides)
    assert config.rope_parameters == expected
    assert config.max_position_embeddings == overrides.get("max_position_embeddings", 4096)


def test_an_override_of_the_same_scaling_keeps_its_numbers(tmp_path: Path) -> None:
    rope = {**YARN, **LENGTH, "rope_theta": 1e6, "beta_fast": 16.0}
    folder = write(tmp_path, {"model_type": "qwen3", "rope_parameters": rope})
    assert load_config(folder, overrides={"rope_scaling": {"factor": 8.0}}).rope_parameters == {**rope, "factor": 8.0}
    plain = load_config(folder, overrides={"rope_scaling": None}).rope_parameters
    assert plain == {"rope_type": "default", "rope_theta": 1e6}


def test_overrides_of_ropes_for_kinds_of_layers(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": "gemma3_text", "rope_theta": 5e5, "rope_local_base_freq": 2e4})
    linear = {"rope_type": "linear", "factor": 8.0}
    config = load_config(folder, overrides={"rope_parameters": {"full_attention": linear}})
    assert config.rope_parameters == {
        "full_attention": {**linear, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    for override in ({"rope_scaling": linear}, {"rope_theta": 1e6}):
        with pytest.raises(UnsupportedConfigError, match=r"for which one, as in rope_parameters=\{'full_attention'"):
            load_config(folder, overrides=override)


def test_an_override_by_a_second_name(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": "mixtral", "num_local_experts": 8})
    assert load_config(folder, overrides={"num_experts": 4}).num_local_experts == 4
    folder = write(tmp_path, {"model_type": "mixtral", "num_experts": 8})
    assert load_config(folder, overrides={"num_local_experts": 4}).num_local_experts == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rope_scaling": {**YARN, "rope_theta": 1e4}, "rope_theta": 1e6}, r"10000\.0 and 1000000\.0 given"),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear"}}, "given for rope_type"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object, found 'yarn'"),
        ({"num_local_experts": 8, "n_routed_experts": 16}, "another name of n_routed_experts"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_overrides_that_contradict_something(tmp_path: Path, overrides: dict[str, object], message: str) -> None:
    folder = write(tmp_path, {"model_type": "deepseek_v3", "num_hidden_layers": 4})
    with pytest.raises(UnsupportedConfigError, match=message) as caught:
        load_config(folder, overrides=overrides)
    assert str(caught.value).startswith(str(folder / "config.json"))


def test_an_override_without_effect(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": "qwen2", "use_sliding_window": False})
    with pytest.raises(UnsupportedConfigError, match="sliding_window = None although 7 is asked for"):
        load_config(folder, overrides={"sliding_window": 7})
    assert load_config(folder, overrides={"sliding_window": 7, "use_sliding_window": True}).sliding_window == 7
    assert load_config(folder, overrides={"layer_types": None, "num_hidden_layers": 2}).num_hidden_layers == 2


@pytest.mark.parametrize("limit", ["[0.0, Infinity]", '[0.0, {"__float__": "Infinity"}]'])
def test_infinity_in_either_form(tmp_path: Path, limit: str) -> None:
    folder = write(tmp_path, f'{{"model_type": "mamba2", "time_step_limit": {limit}}}')
    config = load_config(folder, overrides={"num_hidden_layers": 2})
    assert tuple(config.time_step_limit) == tuple(AutoConfig.from_pretrained(folder).time_step_limit) == (0.0, inf)
    assert read_config_json(folder)["time_step_limit"] == [0.0, inf]


def test_unknown_override(llama_folder: Path) -> None:
    with pytest.raises(
        UnsupportedConfigError, match=r"LlamaConfig has no field 'num_hidden_layer' .*num_hidden_layers"
    ):
        load_config(llama_folder, overrides={"num_hidden_layer": 1})
