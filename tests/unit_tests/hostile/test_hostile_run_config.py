"""`run_config.yaml` as data from anybody: values of every kind for every field, bombs, and bytes changed at random."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.bridge import AutoBridge
from megatron.bridge.models.run_config import read_provider
from megatron.bridge.transport.checkpoint_folder import RUN_CONFIG_NAME
from megatron.bridge.verification import verify_checkpoints
from tests.shares import shares
from tests.tiny_models import TinyModel
from tests.unit_tests.hostile.attempts import attempt, must_fail
from tests.unit_tests.hostile.test_hostile_safetensors import mutate

TINY = TinyModel("tiny", "LlamaForCausalLM", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48})
FUZZ = settings(derandomize=True, max_examples=150, deadline=None, database=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run_config")
    TINY.save(folder / "hf")
    AutoBridge.import_ckpt(folder / "hf", folder / "megatron")
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model / "megatron" / "iter_0000000", tmp_path / "megatron" / "iter_0000000"))


_MERGE_BOMB = "a0: &a0 {k: v}\n" + "".join(
    f"a{index}: &a{index} {{<<: [{', '.join([f'*a{index - 1}'] * 10)}]}}\n" for index in range(1, 12)
)
_LIST_BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]\n" for index in range(1, 12)
)
PROVIDER = "_target_: megatron.bridge.models.gpt_provider.GPTModelProvider"

FILES: dict[str, bytes | str] = {
    "empty": "",
    "null": "null",
    "number": "1",
    "list": "[]",
    "text": "model",
    "not UTF-8": b"model: \xff\xfe",
    "NUL bytes": bytes(100),
    "control characters": b"model: \x01\x02",
    "UTF-16": "model: {}".encode("utf-16"),
    "tab": "model:\n\t_target_: x",
    "open": "model: {",
    "open quote": 'model: "',
    "deep lists": "model: " + "[" * 10_000,
    "deep mappings": "model: " + "{a: " * 5_000,
    "deep blocks": "\n".join(" " * depth + "a:" for depth in range(1_000)),
    "unknown reference": "model: *nothing",
    "reference to itself": "model: &a [*a]",
    "mapping in itself": "model: &a {_target_: *a}",
    "list bomb": _LIST_BOMB + f"model: {{{PROVIDER}, rope_parameters: *a11}}",
    "merge bomb": _MERGE_BOMB + f"model: {{{PROVIDER}, rope_parameters: *a11}}",
    "merge": f"base: &base {{{PROVIDER}}}\nmodel:\n  <<: *base",
    "python object": "model: !!python/object/apply:os.system ['true']",
    "python name": "model: !!python/name:os.system ''",
    "python module": "model: !!python/module:os ''",
    "unknown tag": "model: !anything {}",
    "impossible date": "model: 2001-99-99",
    "impossible time": "model: 2001-01-01 99:99:99",
    "binary": "model: !!binary 'x'",
    "list as a key": "model: {[1, 2]: 3}",
    "mapping as a key": "model: {{a: b}: 3}",
    "model a list": "model: []",
    "model null": "model:",
    "no target": "model: {num_layers: 2}",
    "target a number": "model: {_target_: 5}",
    "target a list": "model: {_target_: [os.system]}",
    "target null": "model: {_target_: null}",
    "target of another package": "model: {_target_: os.system}",
    "target an absent module": "model: {_target_: megatron.bridge.models.nothing.Provider}",
    "target an absent name": "model: {_target_: megatron.bridge.models.gpt_provider.Nothing}",
    "target with dots": "model: {_target_: megatron.bridge.models...GPTModelProvider}",
    "target a dot": "model: {_target_: megatron.bridge.models.}",
    "target private": "model: {_target_: megatron.bridge.models.gpt_provider.__builtins__}",
    "target a module": "model: {_target_: megatron.bridge.models.gpt_provider.torch}",
    "target a function": "model: {_target_: megatron.bridge.models.gpt_provider.set_dtype}",
    "target with spaces": "model: {_target_: 'megatron.bridge.models.gpt_provider GPTModelProvider'}",
    "target a path": "model: {_target_: megatron.bridge.models.../../evil.Provider}",
    "long target": f"model: {{_target_: megatron.bridge.models.{'x' * 100_000}}}",
    "number as a field": f"model: {{{PROVIDER}, 5: 6}}",
    "unknown field": f"model: {{{PROVIDER}, nothing: 6}}",
    "private field": f"model: {{{PROVIDER}, __class__: 6}}",
    "method as a field": f"model: {{{PROVIDER}, finalize: 6}}",
    "checkpoint a list": f"model: {{{PROVIDER}, num_layers: 2}}\ncheckpoint: [1]",
    "checkpoint a text": f"model: {{{PROVIDER}, num_layers: 2}}\ncheckpoint: abc",
    "ten million layers": f"model: {{{PROVIDER}, num_layers: 10000000}}",
    "layers a fraction": f"model: {{{PROVIDER}, num_layers: 2.0}}",
}


@pytest.mark.parametrize("name", FILES)
def test_file(name: str, folder: Path, model: Path) -> None:
    content = FILES[name]
    (folder / RUN_CONFIG_NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    must_fail(lambda: read_provider(folder), folder / RUN_CONFIG_NAME)
    must_fail(lambda: verify_checkpoints(model / "hf", folder.parent), folder / RUN_CONFIG_NAME)
    attempt(lambda: AutoBridge.get_hf_model_id_from_checkpoint(folder.parent), folder / RUN_CONFIG_NAME)


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
    [1, [2]],
    {},
    {"a": {"b": [None]}},
    {"_target_": "os.system", "_call_": True},
    {"_target_": "os.system", "_call_": False},
    {"_target_": 5, "_call_": False},
    {"_target_": "tuple", "_args_": 5},
    {"_target_": "tuple", "_args_": [[1], {"a": 1}]},
    {"_target_": "torch.nn.functional.nothing", "_call_": False},
    {"_target_": "torch.nn.functional", "_call_": False},
    {"_target_": "torch.load", "_call_": False},
    {"_target_": "torch", "_call_": False},
    {"_target_": "", "_call_": False},
    {"_target_": "..", "_call_": False},
]


def _fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((folder / RUN_CONFIG_NAME).read_text())
    return fields


@shares
@pytest.mark.parametrize("kind", ["written", "further"])
def test_every_field(kind: str, every: int, folder: Path, model: Path) -> None:
    """Each field of the file, and some that are at their defaults, with each value: refused, or the same weights."""
    content = _fields(folder)
    names = sorted(content["model"]) if kind == "written" else ["kv_channels", "init_method", "num_moe_experts", "seed"]
    num_refused = 0
    cases = [
        (name, value)
        for number, name in enumerate(names)
        for shift, value in enumerate(VALUES)
        if (number + shift) % every == 0
    ]
    for name, value in cases:
        changed = {**content, "model": {**content["model"], name: value}}
        (folder / RUN_CONFIG_NAME).write_text(yaml.safe_dump(changed))
        found: list[Any] = []
        error = attempt(lambda found=found: found.append(verify_checkpoints(model / "hf", folder)), folder)
        if error is None:
            assert found[0].equal or name == "vocab_size"
        num_refused += error is not None
    assert num_refused > 8 * len(names) // every


@FUZZ
@given(data=st.data())
def test_mutated_file(tmp_path_factory: pytest.TempPathFactory, model: Path, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated_run_config" / "iter_0000000"
    original = model / "megatron" / "iter_0000000"
    if not folder.exists():
        shutil.copytree(original, folder)
    content = bytearray((original / RUN_CONFIG_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(content, len(content), data)
    (folder / RUN_CONFIG_NAME).write_bytes(content)
    found: list[Any] = []
    if attempt(lambda: found.append(verify_checkpoints(model / "hf", folder)), folder) is None:
        assert all(difference.kind != "values" for difference in found[0].differences)
