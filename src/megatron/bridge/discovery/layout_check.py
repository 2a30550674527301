"""What is known of a model before ranks are started: whether it has a bridge, and whether they can share it."""

from typing import Any

from megatron.bridge.discovery.config_levels import load_levels
from megatron.bridge.discovery.families import match_family
from megatron.bridge.discovery.model_files import ModelFiles
from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.models.conversion.registered import no_bridge
from megatron.bridge.models.hf_pretrained import hub
from megatron.bridge.models.hf_pretrained.config import read_config_json
from megatron.bridge.models.run_config import read_run_config
from megatron.bridge.models.transformer.parallel_rules import layout_problems
from megatron.bridge.training.checkpoint_origin import checkpoint_iteration
from megatron.bridge.transport.parallel_sizes import ParallelLayout


def check_layout(name: str, layout: ParallelLayout, revision: str | None = None) -> None:
    """Refuses a layout that a model cannot have, as far as its config alone shows; its weights are not looked at.

    Args:
        name: a Megatron checkpoint, an HF folder or a hub id.
        revision: branch, tag or commit of the hub id.

    Raises:
        ParallelLayoutError: a parallel size does not divide what it splits.
        UnsupportedModelError: the architecture has no bridge.
        CheckpointError: there is no config, or it is malformed.
        HubError: the hub id cannot be found.
    """
    iteration = checkpoint_iteration(name)
    fields: dict[str, Any] = _hf_fields(name, revision) if iteration is None else read_run_config(iteration)["model"]
    # A model that is loaded from Hugging Face weights is given query groups of zeros where that is all that is missing.
    problems = layout_problems({**fields, **layout.provider_fields}, pads_query_groups=iteration is None)
    if problems:
        raise ParallelLayoutError(f"{name}: {'; '.join(problems)}")


def _hf_fields(name: str, revision: str | None) -> dict[str, object]:
    folder = hub.resolve(name, revision=revision, weights=False)
    config = load_levels(ModelFiles(name, "folder", read_config_json(folder), folder))
    family = match_family(config, [])
    architectures = config.values.get("architectures")
    if not family.is_supported and isinstance(architectures, list) and architectures:
        raise no_bridge([str(architecture) for architecture in architectures], name)
    return family.fields
