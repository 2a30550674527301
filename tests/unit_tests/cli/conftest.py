from pathlib import Path

import pytest

from tests.tiny_folder import save_tiny_folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16 with a tokenizer."""
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "hf")
