"""Writes down which names transformers' code mentions: the evidence that a field of a config is not read.

Run by `make names`, for the version of transformers that `uv.lock` pins; a test keeps the table true.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from megatron.bridge.models.conversion.fields.unread import TABLE
from megatron.bridge.models.conversion.registered import registered_bridges

ROOT = Path(transformers.__file__).parent
# What runs in every model's forward pass: it may read any config.
GENERIC = (
    *("modeling_utils", "masking_utils", "modeling_rope_utils", "cache_utils", "activations", "modeling_layers"),
    *("modeling_attn_mask_utils", "modeling_flash_attention_utils", "pytorch_utils", "configuration_utils"),
    *("integrations/sdpa_attention", "integrations/flash_attention", "integrations/flex_attention"),
    *("integrations/moe", "integrations/eager_paged", "integrations/hub_kernels", "integrations/heterogeneity"),
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")


def code_of(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a module, without docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return (node for node in ast.walk(tree) if id(node) not in docstrings)


@cache
def mentioned(path: Path) -> frozenset[str]:
    """The names that a file mentions as an attribute, a string, or the name of an argument."""
    names: set[str] = set()
    for node in code_of(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg or "")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return frozenset(name for name in names if _NAME.fullmatch(name))


@cache
def read_from_configs(path: Path) -> frozenset[str]:
    """The names that generic code mentions as an attribute of something called a config, or as a string."""
    names: set[str] = set()
    for node in code_of(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and "config" in ast.unparse(node.value).lower():
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return frozenset(name for name in names if _NAME.fullmatch(name))


@cache
def imported(path: Path) -> frozenset[Path]:
    """The modeling and config files of models that a file imports, and those that these import."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level and node.module is not None:
            base = path.parents[node.level - 1]
            target = base.joinpath(*node.module.split(".")).with_suffix(".py")
            if target.is_file() and ROOT / "models" in target.parents and target != path:
                found |= {target, *imported(target)}
    return frozenset(found)


def files_of(architecture: str) -> list[Path]:
    """The files of a class of transformers: its modeling file, its config's, and what these import of models."""
    model_class: Any = getattr(transformers, architecture)
    files = [Path(inspect.getfile(model_class)), Path(inspect.getfile(model_class.config_class))]
    return sorted({*files, *(other for file in files for other in imported(file))})


def declared_fields() -> set[str]:
    """The fields of all config classes of transformers."""
    names: set[str] = set()
    for path in sorted((ROOT / "models").glob("*/configuration_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    names.add(member.target.id)
                elif isinstance(member, ast.FunctionDef) and member.name in ("__init__", "__post_init__"):
                    names |= {arg.arg for arg in (*member.args.args, *member.args.kwonlyargs)}
    return names - {"self", "kwargs", "model_type"}


def table() -> dict[str, Any]:
    """The content of the table."""
    generic = set().union(
        *(
            read_from_configs((ROOT / name).with_suffix(".py"))
            for name in GENERIC
            if (ROOT / name).with_suffix(".py").is_file()
        )
    )
    for folder in (ROOT / name for name in GENERIC if (ROOT / name).is_dir()):
        generic |= set().union(*(read_from_configs(path) for path in folder.rglob("*.py")))
    families = {}
    for architecture in sorted(registered_bridges()):
        if hasattr(transformers, architecture):
            names = set().union(*(mentioned(path) for path in files_of(architecture)))
            families[architecture] = sorted(names - generic)
    return {
        "transformers": transformers.__version__,
        "declared": sorted(declared_fields()),
        "generic": sorted(generic),
        "families": families,
    }


if __name__ == "__main__":
    importlib.import_module("torch")
    TABLE.write_text(json.dumps(table(), indent=0) + "\n")
