"""`HFModel`: what the conversion code reads of a Hugging Face model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from megatron.bridge.models.hf_pretrained.config import JsonObject
    from megatron.bridge.models.hf_pretrained.source import WeightSource


class HFModel(Protocol):
    """A Hugging Face model, such as `PreTrainedCausalLM`, with or without weights.

    Attributes:
        config: the config; may be changed or replaced.
    """

    config: PretrainedConfig

    @property
    def model_name_or_path(self) -> str:
        """The hub id, or the path of a local folder."""

    @property
    def has_weights(self) -> bool:
        """Whether there are weights; only then can `state` and `tensor_names` be read."""

    @property
    def state(self) -> WeightSource:
        """The weights, memory-mapped."""

    @property
    def tensor_names(self) -> Collection[str]:
        """The names of the tensors in `state`."""

    @property
    def quantization_config(self) -> dict[str, Any]:
        """What `config.json` says about quantised weights; empty if nothing."""

    def save_artifacts(self, folder: str | Path, quantization: JsonObject | None = None) -> list[str]:
        """Writes everything but the weights into `folder`; returns the names of the written files, sorted."""
