"""From a path or a Hugging Face hub id to a local folder."""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.bridge.errors import BridgeError, CheckpointError, HubError
from megatron.bridge.models.hf_pretrained.other_folders import conversion
from megatron.bridge.models.hf_pretrained.source import has_weights

_TEXT_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
_WEIGHT_PATTERNS = ["*.safetensors"]
# Second copies of the weights, under other names, which some repositories hold and transformers does not read.
_IGNORED_WEIGHTS = ["*/*.safetensors", "consolidated*.safetensors", "adapter_*.safetensors"]


def resolve(path_or_repo_id: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a model.

    An existing folder is returned as it is. Anything else is a hub id ("org/name"), whose config, tokenizer, code and
    safetensors files are downloaded into the Hugging Face cache; pickled weights never are. The environment variables
    of huggingface_hub apply: HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME.

    `resolve("Qwen/Qwen3-0.6B", weights=False)` downloads everything but the weights.

    Args:
        path_or_repo_id: a folder or a hub id.
        revision: the branch, tag or commit of the hub id.
        weights: whether the weights are wanted too.

    Raises:
        HubError: this is neither a folder nor a hub id, or the download failed.
        CheckpointError: `weights` is set, but the repository has no safetensors weights.
        OSError: the cache cannot be written.
    """
    name = str(path_or_repo_id)
    if not name:  # pathlib would take it for the current folder
        raise HubError("an empty name: give a model's folder or its hub id (org/name).")
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise HubError(f"{name}: a file. Give the folder that holds config.json and the weights.")
    snapshot = _download(name, revision, weights)
    if weights and not has_weights(snapshot):
        raise CheckpointError(f"{name}: {no_weights(name)}")
    return snapshot


def no_weights(repo_id: str) -> str:
    """Says that a repository has no weights that can be read, and the next step."""
    return (
        "the repository has no safetensors weights. Pickled weights (*.bin) are never unpickled here: give another "
        f"repository, or the folder that this writes: {conversion(repo_id, repo_id.rpartition('/')[2])}."
    )


def listed_weights(repo_id: str, commit: str) -> list[str]:
    """The safetensors files that a repository lists, downloaded or not, if it was resolved at this commit."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        names = [file.path for file in get_cached_repo_tree(repo_id, revision=commit)]
    except CachedRepoTreeNotFoundError:  # the snapshot was made by an older huggingface_hub
        return []
    return sorted(name for name in names if _matches(name, _WEIGHT_PATTERNS) and not _matches(name, _IGNORED_WEIGHTS))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _download(repo_id: str, revision: str | None, weights: bool) -> Path:
    return download(repo_id, revision, _TEXT_PATTERNS + (_WEIGHT_PATTERNS if weights else []), _IGNORED_WEIGHTS)


def download(repo_id: str, revision: str | None, patterns: list[str], ignored: list[str] | None = None) -> Path:
    """Downloads a repository's files that match a pattern into the Hugging Face cache, and returns their folder.

    Raises:
        HubError: the download failed.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repo_id, revision):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))


@contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns what requests to the hub raise within the block into a `HubError` that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as ClientError  # httpx's or httpx2's

    try:
        yield
    except BridgeError:
        raise
    except HFValidationError as error:
        raise HubError(f"{repo_id}: neither a folder here nor a valid hub id (org/name). Check the path.") from error
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _http_error(repo_id, revision, cause) from error
        raise HubError(
            f"{repo_id}: no such folder here, not (completely) in the Hugging Face cache, and the hub "
            f"{_endpoint()} cannot be reached ({_first_line(cause or error)}). Check the network and HF_HUB_OFFLINE, "
            "or give the path of a local folder."
        ) from error
    except HfHubHTTPError as error:
        raise _http_error(repo_id, revision, error) from error
    except ClientError as error:
        raise _cut(repo_id, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the hub's
            raise
        raise _cut(repo_id, error) from error
    except (ValueError, RuntimeError) as error:  # a file too large for plain HTTP; the xet client's errors
        raise HubError(f"{repo_id}: could not be downloaded from {_endpoint()}: {_first_line(error)}") from error


def _http_error(repo_id: str, revision: str | None, error: Exception) -> HubError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    answer = f"{_endpoint()} answered {status} for {error.response.url}"
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo_id}: no revision {revision!r} ({answer}). Give an existing branch, tag or commit.")
    if isinstance(error, RemoteEntryNotFoundError):
        return HubError(
            f"{repo_id}: a file that the repository lists is not there ({answer}). Try again, or give another revision."
        )
    if isinstance(error, GatedRepoError) or (status in (401, 403) and not isinstance(error, RepositoryNotFoundError)):
        return HubError(
            f"{repo_id}: access is restricted ({answer}). Accept the licence on the model's page, and set "
            "HF_TOKEN to a token of an account that has access."
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{repo_id}: no such folder here, and no such repository, or a private one ({answer}). Check "
            "the name; for a private repository set HF_TOKEN."
        )
    return HubError(f"{repo_id}: the download failed ({answer}: {_first_line(error)}). Try again later.")


def _cut(repo_id: str, error: Exception) -> HubError:
    return HubError(
        f"{repo_id}: the download from {_endpoint()} was cut ({_first_line(error)}). Nothing incomplete was "
        "kept: run it again; complete files are not downloaded twice."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
