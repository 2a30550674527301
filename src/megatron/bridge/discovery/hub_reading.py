"""Reads a model of the hub without its weights: two JSON files, and the first bytes of each weight file."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron.bridge.discovery.model_files import ModelFiles, WeightIndex, add_weights, file_header, weight_index
from megatron.bridge.errors import HubError
from megatron.bridge.models.hf_pretrained import hub, safetensors_format
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, read_config_json

_NUM_REQUESTS = 16  # at once
_LENGTH_NBYTES = 8


def read_hub_model(repo_id: str, revision: str | None = None) -> ModelFiles:
    """Reads a model of the hub: `config.json`, the index and, by range requests, the headers of the weight files.

    The JSON files go into the Hugging Face cache. Weight files that are in the cache already are read there; with
    HF_HUB_OFFLINE, no others are. (huggingface_hub's own `parse_safetensors_file_metadata` requests the first 100 kB of
    each file, which for a small file includes its weights.)

    Raises:
        HubError: there is no such model, or the hub cannot be reached.
        CheckpointError: there is no config, or a file is malformed.
    """
    folder = hub.download(repo_id, revision, [CONFIG_NAME, safetensors_format.INDEX_NAME])
    model = ModelFiles(repo_id, "hub id", read_config_json(folder), folder)
    index = _weight_index(repo_id, folder)
    if _is_offline():
        present = [filename for filename in index.filenames if (folder / filename).is_file()]
        add_weights(model, index, present, (file_header(folder / filename) for filename in present))
        return model
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        headers = pool.map(lambda filename: _header(repo_id, folder, filename), index.filenames)
        add_weights(model, index, index.filenames, headers)
    return model


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _weight_index(repo_id: str, folder: Path) -> WeightIndex:
    if (folder / safetensors_format.INDEX_NAME).is_file():
        return weight_index(folder / safetensors_format.INDEX_NAME)
    names = hub.listed_weights(repo_id, folder.name)
    return WeightIndex([safetensors_format.SINGLE_NAME] if safetensors_format.SINGLE_NAME in names else names, None)


def _header(repo_id: str, folder: Path, filename: str) -> list[safetensors_format.StoredTensor]:
    """The tensors of one file, at the commit of which `folder` is the snapshot."""
    if (folder / filename).is_file():
        return file_header(folder / filename)
    from huggingface_hub import hf_hub_url

    path = f"{repo_id}/{filename}"
    url = hf_hub_url(repo_id, filename, revision=folder.name)
    with hub.hub_errors(repo_id, folder.name):
        prefix, size = _read_range(url, 0, _LENGTH_NBYTES, path)
        nbytes = safetensors_format.header_size(prefix, size, path)
        text, _ = _read_range(url, _LENGTH_NBYTES, _LENGTH_NBYTES + nbytes, path)
    return safetensors_format.parse_header(text, path)[0]


def _read_range(url: str, start: int, stop: int, path: str) -> tuple[bytes, int]:
    """A range of a file's bytes, and the size of the file.

    Raises:
        HubError: the server would send the whole file.
    """
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        size = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or size is None:
            raise HubError(
                f"{path}: the server does not answer requests for a part of a file (status {response.status_code}), so "
                "its header cannot be read without its weights. Download the model, and inspect the folder."
            )
        return response.read(), int(size[1])
