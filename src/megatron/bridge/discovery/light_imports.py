"""The config classes of transformers in half a second: for a process that needs nothing else of it.

`import transformers` looks for torch, and imports it if it is there (3 seconds); and it opens every file of every model
to list what they define (half a second). A command that reads configs needs neither. This changes what the process can
import, so a library function must never call it: the command line does, in a process of its own.
"""

import gc
import importlib.metadata
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_HIDDEN = ("torch", "torchvision", "torchaudio", "tensorflow", "jax", "flax")
# What transformers says when it finds no torch.
_NO_TORCH = "PyTorch was not found"


def use_light_imports() -> None:
    """Hides torch from this process, and makes `transformers` a package whose modules are imported one by one.

    Python's search for cycles of objects is off from here on: the process ends soon, and makes a million small objects
    without cycles. Does nothing where torch or transformers are imported already.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    gc.disable()
    spec = importlib.util.find_spec("transformers")
    _hide_torch()
    logging.getLogger("transformers").addFilter(lambda record: not record.getMessage().startswith(_NO_TORCH))
    if spec is not None and spec.origin is not None:
        _make_shallow(Path(spec.origin).parent)


def _hide_torch() -> None:
    find_spec = importlib.util.find_spec

    def find_visible(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in _HIDDEN else find_spec(name, package)

    importlib.util.find_spec = find_visible
    sys.meta_path.insert(0, _Hider())


class _Hider:
    """A finder that refuses the packages of _HIDDEN."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in _HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden: this process reads configs only", name=name)


def _make_shallow(folder: Path) -> None:
    """Puts packages without contents in the place of `transformers` and `transformers.models`."""
    for name, path in (("transformers", folder), ("transformers.models", folder / "models")):
        module = ModuleType(name)
        module.__path__ = [str(path)]
        module.__file__ = str(path / "__init__.py")
        sys.modules[name] = module
    package: Any = sys.modules["transformers"]
    package.models = sys.modules["transformers.models"]
    package.__version__ = importlib.metadata.version("transformers")
    package.__getattr__ = _auto_class


def _auto_class(name: str) -> Any:
    if name == "AutoConfig":
        return importlib.import_module("transformers.models.auto.configuration_auto").AutoConfig
    raise AttributeError(f"module 'transformers' has no attribute {name!r} in a process that reads configs only")
