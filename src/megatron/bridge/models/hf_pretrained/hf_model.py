"""`HFModel`: what the conversion code reads of a Hugging Face model."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from megatron.bridge.models.hf_pretrained.config import JsonObject
    from megatron.bridge.models.hf_pretrained.source import WeightSource


class HFModel(Protocol):
    """A Hugging Face model, with or without weights: `PreTrainedCausalLM` is one.

    Attributes:
        config: the config; may be changed or replaced.
        model_name_or_path: the hub id, or the path of a local folder.
        has_weights: whether there are weights; only then can `state` and `tensor_names` be read.
        state: the weights, memory-mapped.
        tensor_names: the names of the tensors in `state`.
        quantization_config: what `config.json` says about quantised weights; empty if nothing.
    """

    config: "PretrainedConfig"

    @property
    def model_name_or_path(self) -> str: ...
    @property
    def has_weights(self) -> bool: ...
    @property
    def state(self) -> "WeightSource": ...
    @property
    def tensor_names(self) -> Collection[str]: ...
    @property
    def quantization_config(self) -> dict[str, Any]: ...

    def save_artifacts(
        self,
        folder: str | Path,
        quantization: "JsonObject | None" = None,
        config: "PretrainedConfig | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> list[str]:
        """Writes everything but the weights into `folder`; returns the names of the written files, sorted."""
