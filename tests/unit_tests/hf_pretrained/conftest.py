from pathlib import Path

import pytest

from tests.unit_tests.hf_pretrained.samples import tiny_llama


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in bfloat16 in one file, as transformers saves it."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in several files with an index."""
    folder = tmp_path_factory.mktemp("sharded_llama")
    tiny_llama().save_pretrained(folder, max_shard_size="4KB")
    return folder
