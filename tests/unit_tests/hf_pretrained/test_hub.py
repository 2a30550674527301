import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron.bridge.errors import HubError
from megatron.bridge.models.hf_pretrained.hub import resolve
from tests.hub_server import COMMIT, HubServer

REPO = "org/name"
# Prints one JSON line: the answer, or the error that the user would see.
RESOLVE = """
import json, sys
from megatron.bridge.errors import BridgeError
from megatron.bridge.models.hf_pretrained.hub import resolve
try:
    print(json.dumps({"path": str(resolve(sys.argv[1], **json.loads(sys.argv[2])))}))
except BridgeError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def run(code: str, *arguments: str, endpoint: str, home: Path, **environment: str) -> dict:
    """Runs code with its own cache and endpoint: huggingface_hub reads its environment when it is imported."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    variables = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean | variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def download(hub: HubServer | str, home: Path, repo_id: str = REPO, options: dict | None = None, **environment) -> dict:
    endpoint = hub if isinstance(hub, str) else hub.url
    return run(RESOLVE, repo_id, json.dumps(options or {}), endpoint=endpoint, home=home, **environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with wanted files, and with others that must never be downloaded."""
    folder = tmp_path / "repository"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ["tokenizer.model", "merges.txt", "chat_template.jinja", "qwen.tiktoken", "modeling_strange.py"]:
        (folder / name).write_text(name)
    for name in ["pytorch_model.bin", "training.pt", "model.gguf", "README.md"]:
        (folder / name).write_text(name)
    save_file({"w": torch.arange(50_000)}, folder / "model.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "original" / "model.safetensors")
    return folder


TEXT = ["chat_template.jinja", "config.json", "merges.txt", "modeling_strange.py", "qwen.tiktoken", "tokenizer.model"]


def test_a_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert resolve(".") == Path(".")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~") == tmp_path


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(HubError, match=r"model\.safetensors: a file\. Give the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "a b", "org/name/extra"])
def test_neither_a_folder_nor_an_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=f"{name}: neither a folder here nor a valid hub id"):
        resolve(name)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(HubError, match="an empty name"):
        resolve("")


def test_downloads_what_is_wanted_once(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with HubServer(folder, REPO) as hub:
        path = Path(download(hub, home, options={"weights": False})["path"])
        assert path == home / "hub" / "models--org--name" / "snapshots" / COMMIT
        assert hub.downloads() == sorted(path.name for path in path.iterdir()) == TEXT
        assert Path(download(hub, home)["path"]) == path
        assert hub.downloads() == sorted([*TEXT, "model.safetensors"])
        download(hub, home, options={"revision": COMMIT})
        assert len(hub.downloads()) == len(TEXT) + 1
    for name in [*TEXT, "model.safetensors"]:
        assert (path / name).read_bytes() == (folder / name).read_bytes()
    # Without network, what is in the cache is enough.
    assert Path(download(hub, home)["path"]) == path
    assert Path(download(hub, home, HF_HUB_OFFLINE="1")["path"]) == path


def failure(answer: dict, error: str, *parts: str) -> None:
    assert answer.get("error") == error, answer
    for part in (REPO, *parts):
        assert part in answer["message"], answer["message"]


def test_no_such_repository(folder: Path, tmp_path: Path) -> None:
    with HubServer(folder, "other/name") as hub:
        failure(download(hub, tmp_path / "home"), "HubError", "no such repository", "404", hub.url, "HF_TOKEN")


def test_no_such_revision(folder: Path, tmp_path: Path) -> None:
    with HubServer(folder, REPO) as hub:
        answer = download(hub, tmp_path / "home", options={"revision": "v9"})
    failure(answer, "HubError", "no revision 'v9'", "404")


def test_a_listed_file_is_absent(folder: Path, tmp_path: Path) -> None:
    with HubServer(folder, REPO, missing_files=("model.safetensors",)) as hub:
        failure(download(hub, tmp_path / "home"), "HubError", "404", f"resolve/{COMMIT}/model.safetensors")


@pytest.mark.parametrize(
    ("code", "status", "parts"),
    [
        ("GatedRepo", 401, ("access is restricted", "licence", "HF_TOKEN")),
        ("GatedRepo", 403, ("access is restricted", "licence", "HF_TOKEN")),
        ("", 401, ("access is restricted", "licence", "HF_TOKEN")),
        ("", 403, ("access is restricted", "licence", "HF_TOKEN")),
        ("RepoNotFound", 401, ("private", "HF_TOKEN")),
        ("", 500, ("the download failed", "Try again later")),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, code: str, status: int, parts: tuple[str, ...]) -> None:
    with HubServer(folder, REPO, unauthorized=code, refusal=status, token="secret") as hub:
        failure(download(hub, tmp_path / "home"), "HubError", f"answered {status}", hub.url, *parts)
        if code == "GatedRepo":
            failure(download(hub, tmp_path / "home", HF_TOKEN="wrong"), "HubError", *parts)
            assert "path" in download(hub, tmp_path / "home", HF_TOKEN="secret")


def test_nobody_answers(tmp_path: Path) -> None:
    with HubServer(tmp_path, REPO) as hub:
        endpoint = hub.url
    answer = download(endpoint, tmp_path / "home")
    failure(answer, "HubError", endpoint, "cannot be reached", "Connection refused", "local folder")


def test_offline_and_not_cached(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with HubServer(folder, REPO) as hub:
        parts = ("not (completely) in the Hugging Face cache", "offline", "HF_HUB_OFFLINE")
        failure(download(hub, home, HF_HUB_OFFLINE="1"), "HubError", *parts)
        assert hub.requests == []
        download(hub, home, options={"weights": False})
        failure(download(hub, home, HF_HUB_OFFLINE="1"), "HubError", *parts)
        assert "path" in download(hub, home, options={"weights": False}, HF_HUB_OFFLINE="1")


def test_a_cut_download_is_never_taken_as_complete(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with HubServer(folder, REPO, cut_after_bytes=100_000) as hub:
        failure(download(hub, home), "HubError", "was cut", "received 100000 bytes", hub.url, "run it again")
        sizes = [path.stat().st_size for path in home.rglob("*") if path.is_file()]
        assert 100_000 not in sizes
        assert not list(home.rglob("*.safetensors"))
        failure(download(hub, home, HF_HUB_OFFLINE="1"), "HubError", "not (completely)")
        num_before = len(hub.downloads())
        hub.cut_after_bytes = None
        path = Path(download(hub, home)["path"])
        assert hub.downloads().count("config.json") == 1
        assert len(hub.downloads()) == num_before + 1
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_only_pickled_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with HubServer(folder, REPO) as hub:
        answer = download(hub, tmp_path / "home")
        assert "pytorch_model.bin" not in hub.downloads()
    failure(answer, "CheckpointError", "no safetensors weights", "never unpickled", f"from_pretrained('{REPO}'")


def test_disk_errors_are_not_hub_errors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the cache should be")
    code = RESOLVE + "except OSError as error:\n    print(json.dumps({'errno': error.errno}))\n"
    with HubServer(folder, REPO) as hub:
        answer = run(code, REPO, "{}", endpoint=hub.url, home=tmp_path / "home")
    assert answer["errno"] is not None


def test_causal_lm_downloads_weights_only_when_asked(folder: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from megatron.bridge.models.hf_pretrained import PreTrainedCausalLM
hf_pretrained = PreTrainedCausalLM.from_pretrained(sys.argv[1])
before = [sorted(path.name for path in hf_pretrained.path.iterdir()), hf_pretrained.has_weights]
print(json.dumps({"before": before, "names": list(hf_pretrained.state), "id": hf_pretrained.model_name_or_path}))
"""
    with HubServer(folder, REPO) as hub:
        answer = run(code, REPO, endpoint=hub.url, home=tmp_path / "home")
        assert hub.downloads().count("model.safetensors") == 1
    assert answer == {"before": [TEXT, True], "names": ["w"], "id": REPO}
