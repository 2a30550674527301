"""The names that the source code of transformers mentions, in places where it may read a config field by its name.

The code is parsed, never run. That takes two seconds, so what it finds in the version of transformers that the project
is locked to is kept in `transformers_names.json`, which `make docs` writes. With another version, or for a model that
the file does not have, the installed code is parsed.
"""

import ast
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("transformers_names.json")

# What a model's own code calls, when the model is built and in a forward pass. Some versions lack some of it.
_SHARED_MODULES = (
    "activations", "backbone_utils", "cache_utils", "configuration_utils", "core_model_loading", "distributed/*",
    "fusion_mapping", "initialization", "integrations/*attention", "integrations/*paged", "integrations/accelerate",
    "integrations/deepgemm", "integrations/heterogeneity/*", "integrations/hub_kernels", "integrations/moe",
    "integrations/sonicmoe", "integrations/tensor_parallel", "loss/loss_utils", "masking_utils",
    "modeling_attn_mask_utils", "modeling_flash_attention_utils", "modeling_layers", "modeling_rope_utils",
    "modeling_utils", "monkey_patching", "pytorch_utils", "utils/generic", "utils/kernel_config",
    "utils/output_capturing",
)  # fmt: skip


class Names(NamedTuple):
    """Names in the code of transformers.

    Attributes:
        version: that of transformers.
        declared: the fields of any model's config class.
        shared: what the code that all models share reads of configs.
        models: what each model's own files mention, by the name of its folder.
    """

    version: str
    declared: frozenset[str]
    shared: frozenset[str]
    models: dict[str, frozenset[str]]

    @property
    def own(self) -> frozenset[str]:
        """What the files of any of these models mention."""
        return frozenset().union(*self.models.values())


def folder_of(config_class: type) -> str | None:
    """The folder of a config class in `transformers/models`; `None` if the class is not one of transformers.

    Example: `folder_of(LlamaConfig)` is `'llama'`.
    """
    package, _, below = config_class.__module__.partition(".models.")
    return below.partition(".")[0] or None if package == "transformers" else None


@cache
def names_for(*folders: str) -> Names:
    """The names that matter to one model, with files in these folders: from the table, or from the installed code."""
    import transformers

    names = from_json(TABLE.read_text(), folders)
    if names.version != transformers.__version__:
        return find_names(folders)
    found = {folder: names.models[folder] if folder in names.models else _own(folder) for folder in folders}
    return names._replace(models=found)


def find_names(folders: Iterable[str]) -> Names:
    """The names in the installed version of transformers, for the models in these folders."""
    import transformers

    return Names(transformers.__version__, _declared(), _shared(), {folder: _own(folder) for folder in folders})


def names_read(code: str) -> set[str]:
    """The attributes and strings that a file of Python reads; if it cannot be parsed, all its words."""
    try:
        return set(_mentions(ast.parse(code), reads_alone=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(re.findall(r"\w+", code))


def to_json(names: Names) -> str:
    """The names as the content of the table, where each stands once, under all models that mention it."""
    mentioned_by: dict[str, list[str]] = {}
    for folder, own in sorted(names.models.items()):
        for name in own:
            mentioned_by.setdefault(name, []).append(folder)
    by_models: dict[str, list[str]] = {}
    for name, folders in sorted(mentioned_by.items()):
        by_models.setdefault(" ".join(folders), []).append(name)
    content = {
        "version": names.version,
        "declared": _lines(names.declared),
        "shared": _lines(names.shared),
        "models": {folders: _lines(by_models[folders]) for folders in sorted(by_models)},
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str, only: Collection[str] | None = None) -> Names:
    """The inverse of `to_json`; with `only`, for the models in these folders alone."""
    content = json.loads(text)
    models: dict[str, list[str]] = {}
    for folders, lines in content["models"].items():
        for folder in folders.split():
            if only is None or folder in only:
                models.setdefault(folder, []).extend(_words(lines))
    own = {folder: frozenset(words) for folder, words in models.items()}
    return Names(content["version"], frozenset(_words(content["declared"])), frozenset(_words(content["shared"])), own)


def _lines(words: Iterable[str]) -> list[str]:
    return textwrap.wrap(" ".join(sorted(words)), 110, break_long_words=False)


def _words(lines: Iterable[str]) -> list[str]:
    return " ".join(lines).split()


def _transformers() -> Path:
    import transformers

    return Path(transformers.__file__).parent


def _own(folder: str) -> frozenset[str]:
    """What a model's modeling and config files mention, and those of other models that they import."""
    models = _transformers() / "models"
    todo = [*models.glob(f"{folder}/modeling_*.py"), *models.glob(f"{folder}/configuration_*.py")]
    names: dict[Path, set[str]] = {}
    while todo:
        path = todo.pop()
        if path in names or path.parent.name == "auto" or not path.is_file():
            continue
        tree = ast.parse(path.read_text())
        names[path] = set(_mentions(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level in (1, 2):
                start = path.parent if node.level == 1 else models
                todo.append(start.joinpath(*node.module.split(".")).with_suffix(".py"))
    return frozenset().union(*names.values())


@cache
def _shared() -> frozenset[str]:
    """What the modules shared by all models mention: attributes of configs, and strings."""
    paths = [path for module in _SHARED_MODULES for path in _transformers().glob(f"{module}.py")]
    return frozenset(name for path in paths for name in _mentions(ast.parse(path.read_text()), of_configs=True))


@cache
def _declared() -> frozenset[str]:
    """The fields of all config classes, and their other names."""
    names: set[str] = set()
    for path in _transformers().glob("models/*/configuration_*.py"):
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        for statement in (statement for node in classes for statement in node.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
            elif isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                names |= {argument.arg for argument in (*statement.args.args, *statement.args.kwonlyargs)}
            elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "attribute_map":
                names |= set(_mentions(statement))
    return frozenset(names)


def _mentions(tree: ast.AST, *, of_configs: bool = False, reads_alone: bool = False) -> Iterator[str]:
    """The names in a piece of code that may be those of fields: attributes, strings, and what is defined there.

    Docstrings and comments do not count.

    Args:
        of_configs: whether only attributes of configs count: of `config`, `self.config`, `text_config`, ..., and of
            `self`, which may be one.
        reads_alone: whether only attributes that are read count, not those that are set.
    """
    texts_alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_counted = not (reads_alone and isinstance(node.ctx, ast.Store))
            if is_counted and (not of_configs or _may_be_config(node.value)):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts_alone:
            if node.value.isidentifier():
                yield node.value
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _may_be_config(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else node
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return "config" in name.lower() or name in ("cfg", "self")
