"""Imports the config classes of transformers in half a second, for a process that needs nothing else of transformers.

`import transformers` imports torch if it is installed (3 seconds), and opens every file of every model to list what it
defines (half a second). A command that only reads configs needs neither. This changes what the process can import, so a
library function must never do it: the command line does, in its own process.
"""

import gc
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_HIDDEN = ("torch", "torchvision", "torchaudio", "tensorflow", "jax", "flax")
# How the message begins that transformers logs when it finds no torch.
_NO_TORCH = "PyTorch was not found"


def use_light_imports() -> None:
    """Hides torch from this process, and makes `transformers` a package whose modules are imported one by one.

    From here on Python does not look for reference cycles, because the process soon ends, and makes a million small
    objects that have none. If torch or transformers is imported already, this does nothing.
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
    """A finder that refuses the packages in _HIDDEN."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in _HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden: this process reads configs only", name=name)


def _make_shallow(folder: Path) -> None:
    """Puts empty packages in place of `transformers` and `transformers.models`."""
    for name, path in (("transformers", folder), ("transformers.models", folder / "models")):
        module = ModuleType(name)
        module.__path__ = [str(path)]
        module.__file__ = str(path / "__init__.py")
        sys.modules[name] = module
    models, version = sys.modules["transformers.models"], importlib.metadata.version("transformers")
    vars(sys.modules["transformers"]).update(models=models, __version__=version, __getattr__=_auto_class)


def _auto_class(name: str) -> object:
    if name == "AutoConfig":
        return importlib.import_module("transformers.models.auto.configuration_auto").AutoConfig
    raise AttributeError(f"module 'transformers' has no attribute {name!r} in a process that reads configs only")
