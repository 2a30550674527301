import json
from pathlib import Path

import pytest

from tests.tiny_models import TINY_MODELS


def edit_config(folder: Path, **values: object) -> None:
    """Changes fields of `config.json`, and removes those whose value is `...`."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


@pytest.fixture(scope="session")
def _qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3") / "hf"
    TINY_MODELS["qwen3"].save(folder)
    return folder


@pytest.fixture
def qwen3_folder(_qwen3: Path, tmp_path: Path) -> Path:
    """A tiny Qwen3 that a test may change."""
    import shutil

    return Path(shutil.copytree(_qwen3, tmp_path / "hf"))
