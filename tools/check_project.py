"""Checks that the project keeps its own rules: sizes of files and functions, imports, and public names."""

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "megatron" / "bridge"

MAX_FILE_LINES = 600
MAX_FAMILY_LINES = 150
MAX_FUNCTION_LINES = 60
SHARED_FOLDERS = ("conversion", "hf_pretrained", "transformer")
SHARED_PACKAGES = tuple(f"models.{name}" for name in SHARED_FOLDERS)
FORBIDDEN_NAMES = ("utils.py", "helpers.py", "misc.py")

# The layers of the package, the lowest first. A module imports from its own layer and from those below, nothing from
# those above: not in a function either, and not for types alone. The longest name that fits a module says where it is.
LAYERS = (
    ("errors",),
    ("runtime",),
    ("transport",),
    ("models.hf_pretrained",),
    ("models.transformer",),
    ("models", "models.<family>"),
    ("models.conversion",),
    ("models.<family>.<bridge>",),  # and what a bridge alone uses
    ("training", "peft", "data"),
    ("inference",),
    ("verification",),
    ("discovery",),
    ("recipes", "add_model"),
    ("cli", "__main__"),
)


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


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `megatron.bridge`; the package itself is left out."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def imports_of(tree: ast.Module, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """The modules of the package that a module imports, at the top, in functions or for types, each with its line."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            # What is imported from a package may be a module of it.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.removeprefix("megatron.bridge.")
            if below != name and (module := below if below in known else below.rpartition(".")[0]) in known:
                yield node.lineno, module


def layer_of(name: str) -> int:
    """The index in LAYERS of a module's layer; -1 for a module without one."""
    parts = name.split(".")
    if parts[0] == "models" and len(parts) > 1 and ".".join(parts[:2]) not in SHARED_PACKAGES:
        is_module = len(parts) == 2 or parts[-1].startswith("modeling_") or parts[-1].endswith("_provider")
        parts = ["models"] if is_module else ["models", "<family>", "<bridge>"]
    places = {prefix: index for index, layer in enumerate(LAYERS) for prefix in layer}
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((places[beginning] for beginning in beginnings if beginning in places), -1)


def check_directions() -> Iterator[str]:
    """Imports against the direction of the layers, and circles."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        imports = [(line, module) for line, module in imports_of(ast.parse(path.read_text()), known) if module != name]
        graph[name] = {module for _, module in imports}
        place = path.relative_to(ROOT)
        if layer_of(name) < 0:
            yield f"{place}: {name} belongs to no layer; name it in LAYERS"
        for line, module in imports:
            if layer_of(module) > layer_of(name):
                yield f"{place}: line {line}: imports {module}, which is a layer above"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"import circle: {' <- '.join(error.args[1])}"


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
    yield from check_directions()
    if (ROOT / "src" / "megatron" / "__init__.py").exists():
        yield "src/megatron/__init__.py: megatron is a namespace package that megatron-core shares"


if __name__ == "__main__":
    broken = list(problems())
    print("\n".join(broken) or "sizes, imports, layers and docstrings: fine")
    sys.exit(bool(broken))
