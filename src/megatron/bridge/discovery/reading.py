"""Finds and reads a model: a folder, a lone `config.json`, or a model of the hub."""

from pathlib import Path

from megatron.bridge.discovery.hub_reading import read_hub_model
from megatron.bridge.discovery.model_files import ModelFiles, WeightIndex, add_weights, file_header, weight_index
from megatron.bridge.errors import CheckpointError, HubError
from megatron.bridge.models.hf_pretrained.config import CONFIG_NAME, read_config_json
from megatron.bridge.models.hf_pretrained.other_folders import adapter, what_it_holds
from megatron.bridge.models.hf_pretrained.safetensors_format import INDEX_NAME, files_without_index


def read_model(name: str, revision: str | None = None) -> ModelFiles:
    """Reads a folder, a lone `config.json`, or a model of the hub.

    Raises:
        CheckpointError: there is no config, or a file is malformed.
        HubError: the name is neither a local path nor a model of the hub.
    """
    if not name:  # pathlib would take it for the current folder
        raise HubError("an empty name: give a model's folder, its config.json or its hub id (org/name).")
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_folder(name, path)
    if path.is_file():
        return _read_lone_config(name, path)
    return read_hub_model(name, revision)


def _read_folder(name: str, folder: Path) -> ModelFiles:
    model = ModelFiles(name, "folder", read_config_json(folder), folder)
    index = (
        weight_index(folder / INDEX_NAME)
        if (folder / INDEX_NAME).is_file()
        else WeightIndex(files_without_index(folder), None)
    )
    present = [filename for filename in index.filenames if (folder / filename).is_file()]
    add_weights(model, index, present, (file_header(folder / filename) for filename in present))
    if held := adapter(folder) or ("" if present else what_it_holds(folder)):
        model.problems.append(f"the folder {held}")
    return model


def _read_lone_config(name: str, path: Path) -> ModelFiles:
    if path.name == CONFIG_NAME:
        return ModelFiles(name, "config.json", read_config_json(path.parent), path.parent)
    if path.suffix != ".json":
        raise CheckpointError(f"{name}: expected a model's folder, its config.json or a hub id, found another file.")
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="megatron-bridge-inspect-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(path, folder / CONFIG_NAME)
    return ModelFiles(name, "config.json", read_config_json(folder), folder)
