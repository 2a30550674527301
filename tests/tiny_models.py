"""The tiny models of all families, each from its own folder: `functional_tests/models/<family>/tiny_models.py`.

Every suite that runs over families runs over these.
"""

import importlib
from pathlib import Path

from tests.tiny_model import TinyModel, randomize, rope

__all__ = ["ALL_MODELS", "FIRST_VARIANTS", "TINY_MODELS", "TinyModel", "randomize", "rope"]


def _of_all_families() -> dict[str, TinyModel]:
    models: dict[str, TinyModel] = {}
    for path in sorted(Path(__file__).parent.glob("functional_tests/models/*/tiny_models.py")):
        for tiny in importlib.import_module(
            f"tests.functional_tests.models.{path.parent.name}.tiny_models"
        ).TINY_MODELS:
            assert tiny.name not in models, f"two tiny models have the name {tiny.name}"
            models[tiny.name] = tiny
    return models


ALL_MODELS = _of_all_families()
# Those of which transformers has the config class.
TINY_MODELS = {name: tiny for name, tiny in ALL_MODELS.items() if not tiny.trust_remote_code}
# The name of one variant of each architecture, the first.
FIRST_VARIANTS = list({tiny.published_architecture: name for name, tiny in reversed(TINY_MODELS.items())}.values())
