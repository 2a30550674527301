"""Checks that the project keeps its own rules: sizes of files and functions, imports, and public names."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "megatron" / "bridge"

MAX_FILE_LINES = 600
MAX_FAMILY_LINES = 150
MAX_FUNCTION_LINES = 60
SHARED_FOLDERS = ("conversion", "hf_pretrained", "transformer")
FORBIDDEN_NAMES = ("utils.py", "helpers.py", "misc.py")


def is_family(path: Path) -> bool:
    """Whether a file belongs to a model family: its bridge, or a module that it alone has."""
    return path.parent.parent == SOURCE / "models" and path.parent.name not in SHARED_FOLDERS


def check_sizes(path: Path, text: str, tree: ast.Module) -> Iterator[str]:
    """Files and functions that have outgrown what a reader can hold in mind."""
    limit = MAX_FAMILY_LINES if is_family(path) else MAX_FILE_LINES
    num_lines = text.count("\n")
    if num_lines > limit:
        yield f"{num_lines} lines, at most {limit}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            length = (
                (node.end_lineno or node.lineno) - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
            )
            if length > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def check_imports(path: Path, tree: ast.Module) -> Iterator[str]:
    """Only the transport touches torch.distributed, and what the runtime puts in place of one of its functions."""
    may_use = path.parent == SOURCE / "transport" or path == SOURCE / "runtime" / "gloo.py"
    if SOURCE in path.parents and not may_use:
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                names = [f"torch.{node.attr}"]
            if any(name == "torch.distributed" or name.startswith("torch.distributed.") for name in names):
                yield f"line {node.lineno}: uses torch.distributed outside transport/"


def check_docstrings(tree: ast.Module) -> Iterator[str]:
    """Public modules, classes and functions say what they are."""
    if ast.get_docstring(tree) is None and tree.body:
        yield "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield f"line {node.lineno}: {node.name} has no docstring"
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                is_public = isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
                if is_public and ast.get_docstring(member) is None and not _overrides(node, member):
                    yield f"line {member.lineno}: {node.name}.{member.name} has no docstring"


def _overrides(owner: ast.ClassDef, member: ast.FunctionDef) -> bool:
    """Methods of a class with bases may be overrides, whose contract the base states."""
    return bool(owner.bases) and not any(isinstance(base, ast.Name) and base.id == "ABC" for base in owner.bases)


def problems() -> Iterator[str]:
    """Every broken rule, with its place."""
    folders = [ROOT / name for name in ("src", "tests", "examples", "tools", "benchmarks")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        found = [*check_sizes(path, text, tree), *check_imports(path, tree)]
        if SOURCE in path.parents:
            found += check_docstrings(tree)
        if path.name in FORBIDDEN_NAMES:
            found.append(f"a file named {path.name} says nothing about what is in it")
        for problem in found:
            yield f"{path.relative_to(ROOT)}: {problem}"
    if (ROOT / "src" / "megatron" / "__init__.py").exists():
        yield "src/megatron/__init__.py: megatron is a namespace package that megatron-core shares"


if __name__ == "__main__":
    broken = list(problems())
    print("\n".join(broken) or "sizes, imports and docstrings: fine")
    sys.exit(bool(broken))
