"""What the package promises about itself."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import megatron.bridge
from tests.programs import TIMEOUT
from tools import check_project, make_docs
from tools.gpu_proof.page import gpu_page

HEAVY = ("torch", "megatron.core", "transformers", "numpy")


def loaded_after(code: str) -> list[str]:
    """The heavy packages that are loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    return json.loads(result.stdout)


def test_import_is_light() -> None:
    assert loaded_after("import megatron.bridge, megatron.bridge.errors, megatron.bridge.runtime") == []


def test_the_table_of_families_is_light() -> None:
    code = "from megatron.bridge.models.conversion.registered import registered_bridges\nassert registered_bridges()"
    assert loaded_after(code) == []


def test_public_names() -> None:
    names = ["AutoBridge", "BridgeError", "__version__", "dequantize_checkpoint", "inspect_model"]
    assert sorted(megatron.bridge.__all__) == names
    for name in megatron.bridge.__all__:
        assert getattr(megatron.bridge, name) is not None


def test_names_that_clients_import() -> None:
    """Import paths that training frameworks use."""
    for module, names in {
        "models.conversion.model_bridge": ["MegatronModelBridge"],
        "models.conversion.mapping_registry": ["MegatronMappingRegistry"],
        "models.conversion.param_mapping": ["AutoMapping", "MegatronParamMapping", "QKVMapping", "GatedMLPMapping"],
        "models.hf_pretrained.causal_lm": ["PreTrainedCausalLM"],
        "models.gpt_provider": ["GPTModelProvider", "transformer_engine_layer_spec"],
        "models.model_provider": ["ModelProviderMixin", "get_model"],
        "training.model_load_save": ["load_model_config", "save_megatron_model", "temporary_distributed_context"],
    }.items():
        loaded = importlib.import_module(f"megatron.bridge.{module}")
        for name in names:
            assert hasattr(loaded, name), f"{module}.{name}"


def test_the_project_keeps_its_rules() -> None:
    assert list(check_project.problems()) == []


def test_layers_of_modules() -> None:
    """Where modules of each kind belong, from the lowest up."""
    names = [
        "errors", "transport.boxes", "models.hf_pretrained.hub", "models.transformer.router",
        "models.gemma.modeling_gemma4", "models.conversion.plan", "models.gemma.gemma4_mappings", "discovery.facts",
        "cli.app",
    ]  # fmt: skip
    layers = [check_project.layer_of(name) for name in names]
    assert layers == sorted(set(layers)) and layers[0] == 0
    assert check_project.layer_of("models.gpt_provider") == check_project.layer_of("models.gemma")
    assert check_project.layer_of("models.qwen.qwen3_bridge") == check_project.layer_of("models.gemma.gemma4_mappings")
    assert check_project.layer_of("a_new_package.module") == -1


@pytest.mark.parametrize(
    ("where", "line", "problem"),
    [
        ("transport/boxes.py", "from megatron.bridge.models.conversion.plan import Plan", "a layer above"),
        (
            "transport/boxes.py",
            "def f():\n    import megatron.bridge.cli.app",
            "imports cli.app, which is a layer above",
        ),
        ("errors.py", "if TYPE_CHECKING:\n    from megatron.bridge import runtime", "imports runtime, which is"),
        ("transport/boxes.py", "from megatron.bridge.transport import torch_dist", "import circle: transport."),
        ("new_room/file.py", "", "new_room.file belongs to no layer"),
    ],
)
def test_imports_against_the_direction(
    where: str, line: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(check_project.SOURCE, tmp_path / "src" / "megatron" / "bridge"))
    monkeypatch.setattr(check_project, "SOURCE", source)
    monkeypatch.setattr(check_project, "ROOT", tmp_path)
    assert list(check_project.check_directions()) == []
    path = source / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{line}\n")
    found = list(check_project.check_directions())
    assert any(problem in text for text in found), found


def test_sizes_of_files() -> None:
    def problems(path: str, num_lines: int) -> list[str]:
        text = "x = 1\n" * num_lines
        return list(check_project.check_sizes(check_project.SOURCE / path, text, ast.parse(text)))

    for path in ("models/llama/llama_bridge.py", "models/llama/modeling_llama4.py"):
        assert (check_project.SOURCE / path).is_file()
        assert problems(path, 150) == []
        assert problems(path, 151) == ["151 lines, at most 150"]
    for path in ("models/transformer/router.py", "models/conversion/model_bridge.py"):
        assert problems(path, 600) == []
        assert problems(path, 601) == ["601 lines, at most 600"]


def test_the_pages_made_from_the_code_are_current() -> None:
    assert (make_docs.ROOT / "docs" / "models.md").read_text() == make_docs.models_page()
    assert (make_docs.ROOT / "docs" / "gpu.md").read_text() == gpu_page(make_docs.ROOT / "docs" / "gpu.json")
