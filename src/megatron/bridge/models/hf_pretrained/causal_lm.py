"""A Hugging Face model folder as one object: config, weights, tokenizer and other files, each read when asked for."""

from collections.abc import Collection
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from megatron.bridge.errors import CheckpointError
from megatron.bridge.models.hf_pretrained import hub
from megatron.bridge.models.hf_pretrained.artifacts import (
    copy_artifacts,
    has_tokenizer_files,
    state_dtype,
    state_quantization,
)
from megatron.bridge.models.hf_pretrained.config import JsonObject, load_config, remove_quantization
from megatron.bridge.models.hf_pretrained.dtypes import DtypeLike, requested_dtype
from megatron.bridge.models.hf_pretrained.other_folders import what_it_holds
from megatron.bridge.models.hf_pretrained.quantization.source import DequantizedSource, open_weights
from megatron.bridge.models.hf_pretrained.source import WeightSource, has_weights, indexed_names
from megatron.bridge.runtime import startup

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from megatron.bridge.models.hf_pretrained.hf_model import HFModel


class PreTrainedCausalLM:
    """A Hugging Face model: its config is read at once, and everything else on first use.

    Attributes:
        path: the local folder (for a hub id, the snapshot of it in the cache).
        repo_id: the hub id that `path` is a snapshot of, or None.
        config: the config; may be changed or replaced.
        trust_remote_code: whether the folder's own Python code may run.
        dtype: the dtype that was asked for; None for that of the checkpoint.
        quantization_config: what `config.json` says about quantised weights; empty if nothing. `config` does not say
            it, because the weights are read as numbers.
        leaves_unknown_numbers: what `state` does with numbers that it cannot read: gives them as they are stored, for a
            family that reads them itself (`maybe_modify_loaded_hf_weight`), or raises an error.
    """

    def __init__(
        self,
        path: str | Path,
        config: "PretrainedConfig",
        *,
        repo_id: str | None = None,
        trust_remote_code: bool = False,
        dtype: "torch.dtype | None" = None,
    ) -> None:
        self.path = Path(path)
        self.config = config
        self.repo_id = repo_id
        self.trust_remote_code = trust_remote_code
        self.dtype = dtype
        self.quantization_config: dict[str, Any] = {}
        self.leaves_unknown_numbers = False
        self._config_on_disk: JsonObject | None = None  # what `config` was when it was loaded

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        trust_remote_code: bool = False,
        revision: str | None = None,
        dtype: DtypeLike = None,
        torch_dtype: DtypeLike = None,
        **config_overrides: Any,
    ) -> Self:
        """Finds the folder and loads its config. Weights are neither downloaded nor read yet.

        `PreTrainedCausalLM.from_pretrained("Qwen/Qwen3-0.6B", num_hidden_layers=2)` is Qwen3 with two layers.

        Args:
            path_or_repo_id: a folder or a hub id.
            trust_remote_code: allow the folder's own Python code to run.
            revision: the branch, tag or commit of a hub id.
            dtype, torch_dtype: the dtype of the model (two names of one argument, as in transformers): a dtype, its
                name, or "auto" for that of the checkpoint, which is the default.
            config_overrides: values to replace in the config (see `load_config`).

        Raises:
            BridgeError: `dtype` is not one, or differs from `torch_dtype`.
            HubError: the id could not be resolved or downloaded.
            CheckpointError: there is no `config.json`, or it is malformed.
            UnsupportedModelError: transformers does not know the `model_type`, or custom code may not run.
            UnsupportedConfigError: transformers refuses a value, or an override names no field of the config.
        """
        chosen = requested_dtype(dtype, torch_dtype)
        path = hub.resolve(path_or_repo_id, revision=revision, weights=False)
        config = load_config(path, trust_remote_code=trust_remote_code, overrides=config_overrides)
        repo_id = None if Path(path_or_repo_id).expanduser() == path else str(path_or_repo_id)
        hf_pretrained = cls(path, config, repo_id=repo_id, trust_remote_code=trust_remote_code, dtype=chosen)
        hf_pretrained.quantization_config = remove_quantization(config)
        if not config_overrides:
            hf_pretrained._config_on_disk = config.to_dict()
        if chosen is not None:
            config.dtype = chosen  # so that Megatron's model has it too
        return hf_pretrained

    @property
    def model_name_or_path(self) -> str:
        """The hub id, or the path of a local folder."""
        return self.repo_id or str(self.path)

    @property
    def has_weights(self) -> bool:
        """Whether there are safetensors weights, here or (for a hub id, not downloaded yet) in the repository."""
        return has_weights(self.path) or bool(self.repo_id and hub.listed_weights(self.repo_id, self.path.name))

    def why_no_weights(self) -> str:
        """What there is instead of weights, and the next step; empty if nothing is known."""
        return hub.no_weights(self.repo_id) if self.repo_id else what_it_holds(self.path)

    @cached_property
    def state(self) -> WeightSource:
        """The weights, memory-mapped; quantised ones are computed when they are read.

        For a hub id, the first use downloads them.

        Raises:
            CheckpointError: the weights are missing or malformed (see `SafetensorsSource`).
            QuantizationError: quantised numbers that cannot be read.
            HubError: the download failed.
        """
        return open_weights(self._resolve_weights(), is_strict=not self.leaves_unknown_numbers)

    @cached_property
    def tensor_names(self) -> Collection[str]:
        """The names of the tensors in `state`, which is not opened if an index gives them.

        Raises:
            CheckpointError, QuantizationError, HubError: as for `state`.
        """
        # The index of quantised weights names what they are stored as.
        names = None if self.quantization_config else indexed_names(self.path)
        return self.state.infos if names is None else names

    def with_unknown_numbers(self) -> Self:
        """The same model, but its `state` gives numbers that it cannot read as they are stored."""
        other = copy(self)
        other.leaves_unknown_numbers = True
        for name in ("state", "tensor_names"):
            vars(other).pop(name, None)
        return other

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer.

        Raises:
            CheckpointError: the folder has none that transformers can load.
        """
        return self.load_tokenizer()

    def load_tokenizer(self, **kwargs: Any) -> "PreTrainedTokenizerBase":
        """The tokenizer, loaded with the given settings.

        Args:
            kwargs: passed to `AutoTokenizer.from_pretrained`.

        Raises:
            CheckpointError: as for `tokenizer`.
        """
        from transformers import AutoTokenizer

        hint = "put its files (tokenizer.json) there, or take another model's tokenizer (--hf, tokenizer_from)"
        try:
            settings = {"trust_remote_code": self.trust_remote_code, **kwargs}
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.path, **settings)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())
            reason = f" that transformers can load ({told:.300})" if has_tokenizer_files(self.path) else ""
            raise CheckpointError(f"{self.path}: no tokenizer{reason}; {hint}") from error
        # For a folder without a tokenizer, transformers makes one that knows special tokens and nothing else.
        if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
            raise CheckpointError(f"{self.path}: no tokenizer; {hint}")
        return tokenizer

    @cached_property
    def generation_config(self) -> "GenerationConfig | None":
        """The folder's `generation_config.json`, or None if there is none.

        Raises:
            CheckpointError: it is malformed.
        """
        from transformers import GenerationConfig

        path = self.path / "generation_config.json"
        if not path.is_file():
            return None
        try:
            return GenerationConfig.from_pretrained(self.path)
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise CheckpointError(f"{path}: transformers refuses it: {error!s:.300}") from error

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The Hugging Face model with its weights, in eval mode, on the CPU: all of it in memory.

        Raises:
            CheckpointError: a weight of the model is absent from the checkpoint, or has another shape there.
        """
        import transformers

        architecture = (self.config.architectures or [""])[0]
        with startup.lean_imports():
            model_class: Any = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
        is_quantized = isinstance(self.state, DequantizedSource)
        loaded: tuple[PreTrainedModel, dict[str, Collection[object]]] = model_class.from_pretrained(
            None if is_quantized else self._resolve_weights(),
            config=self.config,
            state_dict=dict(self.state) if is_quantized else None,
            dtype=self.dtype or ("auto" if not is_quantized else self.config.dtype),
            trust_remote_code=self.trust_remote_code,
            output_loading_info=True,
        )
        model, info = loaded
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if missing:
            raise CheckpointError(
                f"{self.path}: transformers left weights of {type(model).__name__} at their random "
                f"initialisation: {', '.join(missing)}. The checkpoint does not hold them."
            )
        model.eval()
        return model

    def save_artifacts(
        self,
        folder: str | Path,
        quantization: JsonObject | None = None,
        config: "PretrainedConfig | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> list[str]:
        """Writes everything but the weights into `folder` (see `copy_artifacts`).

        `config.json` is the source's, byte for byte, unless `config` was changed after it was loaded, or the weights
        are written in another form than the source's.

        Args:
            quantization: the `quantization_config` of the weights; `None` for plain weights.
            config: the config of what is written; default: `config`.
            dtype: the dtype of the weights. Where the config states none, transformers takes it from the weights.

        Returns:
            The names of the written files, sorted.
        """
        config = self.config if config is None else config
        is_changed = self._config_on_disk is None or config.to_dict() != self._config_on_disk
        is_same_form = quantization == self.quantization_config
        written = copy_artifacts(self.path, folder, config if is_changed else None, is_same_form)
        stated = {} if is_changed else self.quantization_config
        if stated != (quantization or {}):
            state_quantization(Path(folder), quantization)
        state_dtype(Path(folder), dtype)
        return written

    def _resolve_weights(self) -> Path:
        if self.repo_id is None:
            return self.path
        # A snapshot's folder is named after its commit, so config and weights are of the same one.
        return hub.resolve(self.repo_id, revision=self.path.name)

    def __repr__(self) -> str:
        return f"PreTrainedCausalLM({self.model_name_or_path!r}, {type(self.config).__name__})"


if TYPE_CHECKING:
    _is_hf_model: "type[HFModel]" = PreTrainedCausalLM
