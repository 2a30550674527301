"""A new family is a folder of its own under the models, and two among the tests: no other file is touched.

In a copy of the project, a family of a made-up architecture is added, recorded and listed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import TIMEOUT

ROOT = Path(__file__).parents[2]
FILES = {
    "src/megatron/bridge/models/toy/__init__.py": "",
    "src/megatron/bridge/models/toy/toy_bridge.py": '''
"""Toy: Llama under another name."""

from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.llama.llama_bridge import LlamaBridge


@MegatronModelBridge.register_bridge(
    source="ToyForCausalLM", target="GPTModel", model_type="toy", same_config={"toy": "llama"}
)
class ToyBridge(LlamaBridge):
    """The same weights."""
''',
    "tests/functional_tests/models/toy/tiny_models.py": '''
"""Tiny models of Toy."""

from tests.tiny_model import BIAS, TinyModel

_JSON = {"model_type": "toy", "architectures": ["ToyForCausalLM"]}
TOY_MODELS = (TinyModel("toy", "LlamaForCausalLM", BIAS, config_json=_JSON),)
TINY_MODELS = TOY_MODELS
''',
    "tests/functional_tests/models/toy/test_toy_conversion.py": '''
"""Toy: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.toy.tiny_models import TOY_MODELS
from tests.parity import ConversionSuite


class TestToyConversion(ConversionSuite):
    models = TOY_MODELS
''',
    "tests/unit_tests/models/toy/test_toy_bridge.py": '''
"""Toy: configs, names and counts."""

from tests.bridge_suite import BridgeSuite
from tests.functional_tests.models.toy.tiny_models import TOY_MODELS


class TestToyBridge(BridgeSuite):
    models = TOY_MODELS
''',
}
RECORD = "src/megatron/bridge/models/toy/proven.json"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, with the family."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "tests", "tools", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip())
    return folder


def run(project: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{project / 'src'}:{project}", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_new_family_touches_no_other_file(project: Path) -> None:
    before = contents(project)
    folders = ["tests/unit_tests/models/toy", "tests/functional_tests/models/toy"]
    shared = ["tests/unit_tests/models/test_families.py", "-k", "toy"]
    options = ["-n", "0", "-m", "proof or not proof", "--record-proof", "-p", "no:cacheprovider"]
    printed = run(project, "-m", "pytest", *folders, *shared, *options)
    assert "10 passed" in printed, printed
    after = contents(project)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {RECORD}
    layouts = ["pp2", "tp1", "tp2", "tp2-sp"]
    found = [(row["variant"], row["layout"]) for row in json.loads(after[RECORD])]
    assert found == [("toy", layout) for layout in layouts]

    listed = json.loads(run(project, "-m", "megatron.bridge", "models", "--json"))
    (toy,) = [row for row in listed["models"] if row["architecture"] == "ToyForCausalLM"]
    assert sorted(toy["proven_layouts"]) == layouts


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
