"""What the package promises about itself."""

import ast
import importlib
import json
import subprocess
import sys

import megatron.bridge
from tools import check_project, make_docs

HEAVY = ("torch", "megatron.core", "transformers", "numpy")


def loaded_after(code: str) -> list[str]:
    """The heavy packages that are loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
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
