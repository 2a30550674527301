"""Megatron Bridge: takes Hugging Face models to Megatron-Core and back, on any parallel layout, with proof.

Importing the package imports neither torch nor megatron-core; its names are loaded on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.bridge.discovery.inspection import inspect_model
    from megatron.bridge.errors import BridgeError
    from megatron.bridge.models.conversion.auto_bridge import AutoBridge
    from megatron.bridge.models.conversion.dequantize import dequantize_checkpoint

__all__ = ["AutoBridge", "BridgeError", "__version__", "dequantize_checkpoint", "inspect_model"]

__version__ = "0.1.0"

_LAZY = {
    "AutoBridge": "megatron.bridge.models.conversion.auto_bridge",
    "BridgeError": "megatron.bridge.errors",
    "dequantize_checkpoint": "megatron.bridge.models.conversion.dequantize",
    "inspect_model": "megatron.bridge.discovery.inspection",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
