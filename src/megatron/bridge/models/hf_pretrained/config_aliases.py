"""Values of `model_type` that transformers does not know, but whose configs are those of another, field by field.

Families state them (`register_bridge(same_config=...)`), so that no config is read in a way that no family vouches for.
"""

import importlib
import pkgutil
from collections.abc import Mapping

# HF architecture -> unknown `model_type` -> the known one. Every architecture that has a bridge is a key.
_ALIASES: dict[str, dict[str, str]] = {}

_NO_FAMILIES = ("conversion", "hf_pretrained", "transformer")


def add_aliases(architecture: str, aliases: Mapping[str, str]) -> None:
    """States the aliases of an architecture that has a bridge; there may be none."""
    _ALIASES[architecture] = dict(aliases)


def known_config_type(model_type: object, architectures: object) -> str | None:
    """The `model_type` whose config class reads a config of a `model_type` that transformers does not know, or `None`.

    `known_config_type("kimi_k2", ["DeepseekV3ForCausalLM"])` is "deepseek_v3".

    Args:
        architectures: the config's; the first of them that has a bridge must be the one that the alias was stated for.
    """
    import_families()
    names = architectures if isinstance(architectures, list) else []
    architecture = next((name for name in names if isinstance(name, str) and name in _ALIASES), "")
    return _ALIASES.get(architecture, {}).get(model_type) if isinstance(model_type, str) else None


def import_families() -> None:
    """Imports every family's `<model>_bridge` modules, which register themselves."""
    models = importlib.import_module("megatron.bridge.models")
    for package in pkgutil.iter_modules(models.__path__):
        if not package.ispkg or package.name in _NO_FAMILIES:
            continue
        family = importlib.import_module(f"{models.__name__}.{package.name}")
        for module in pkgutil.iter_modules(family.__path__):
            if module.name.endswith("_bridge"):
                importlib.import_module(f"{family.__name__}.{module.name}")
