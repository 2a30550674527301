"""What a model is, before any of it is loaded: read from its config and from the headers of its weight files.

`inspect_model` needs no torch and no weights. The command `megatron-bridge inspect` shows what it returns.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.bridge.discovery.inspection import inspect_model
    from megatron.bridge.discovery.report import ModelReport

__all__ = ["ModelReport", "inspect_model"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = "inspection" if name == "inspect_model" else "report"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
