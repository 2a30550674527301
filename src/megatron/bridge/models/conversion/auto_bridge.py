"""`AutoBridge`: one object for every conversion between a Hugging Face model and its Megatron form."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from megatron.bridge.errors import BridgeError, CheckpointError
from megatron.bridge.models.conversion.registered import find_bridge, registered_bridges, supported_architecture
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.config import load_config
from megatron.bridge.models.hf_pretrained.dtypes import DtypeLike, requested_dtype

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer.module import MegatronModule
    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.export_report import ExportReport
    from megatron.bridge.models.conversion.hooks import BridgeHooks, Model
    from megatron.bridge.models.conversion.plan import WeightConversionTask
    from megatron.bridge.models.conversion.resources import Resources
    from megatron.bridge.models.conversion.weight_stream import HFWeightInfo, HFWeightTuple, LoadReport
    from megatron.bridge.models.hf_pretrained.config import JsonObject
    from megatron.bridge.models.model_provider import Provider


_LOGGER = logging.getLogger(__name__)


class _ConfigOnly(PreTrainedCausalLM):
    """An HF model of which only the config exists."""

    def __init__(self, config: "PretrainedConfig"):
        self._name: str = getattr(config, "name_or_path", "") or type(config).__name__
        super().__init__(self._name, config)

    @property
    def model_name_or_path(self) -> str:
        return self._name

    @property
    def has_weights(self) -> bool:
        return False

    def save_artifacts(
        self,
        folder: str | Path,
        quantization: "JsonObject | None" = None,
        config: "PretrainedConfig | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> list[str]:
        from megatron.bridge.models.hf_pretrained.artifacts import save_config, state_dtype, state_quantization

        save_config(self.config if config is None else config, folder)
        state_dtype(Path(folder), dtype)
        if quantization or getattr(self.config, "quantization_config", None):
            state_quantization(Path(folder), quantization)
        return ["config.json"]


def _as_read(hf_pretrained: PreTrainedCausalLM) -> PreTrainedCausalLM:
    """The model as its family reads it: if the family changes weights, numbers of unknown meaning are left to it.

    An architecture that follows from the `model_type` alone is stated, for exports and for transformers.
    """
    entry, config = find_bridge(hf_pretrained.config), hf_pretrained.config
    if entry.architecture not in (config.architectures or ()):
        config.architectures = [entry.architecture]
    is_own = entry.bridge_class().changes_loaded_weights
    return hf_pretrained.with_unknown_numbers() if is_own else hf_pretrained


class AutoBridge:
    """Converts one Hugging Face model to Megatron-Core and back.

    Made by `from_hf_pretrained` or `from_hf_config`.

    Attributes:
        hf_pretrained: the HF model: config, weights (memory-mapped), tokenizer and other files.
        export_weight_dtype: the name of a dtype for exports, for clients that ask for it.
        load_report: what the last load of weights did on this rank.
        export_report: how the last export differs from the source, if it does.

    Example:
        >>> bridge = AutoBridge.from_hf_pretrained("Qwen/Qwen3-0.6B")
        >>> model = bridge.to_megatron_model(wrap_with_ddp=False)
        >>> bridge.save_hf_pretrained(model, "out")
    """

    def __init__(self, hf_pretrained: "PreTrainedCausalLM | PretrainedConfig"):
        from transformers import PretrainedConfig

        self.hf_pretrained: PreTrainedCausalLM = (
            _ConfigOnly(hf_pretrained) if isinstance(hf_pretrained, PretrainedConfig) else _as_read(hf_pretrained)
        )
        find_bridge(self.hf_pretrained.config)
        self.export_weight_dtype = "bf16"
        self.load_report: LoadReport | None = None
        self.export_report: ExportReport | None = None

    # Construction

    @classmethod
    def from_hf_pretrained(cls, path: str | Path, **kwargs: Any) -> Self:
        """A bridge for a local folder or a hub id. Weights are not read before something needs them.

        Args:
            path: a folder or a hub id.
            kwargs: those of `PreTrainedCausalLM.from_pretrained`: `trust_remote_code`, `revision`, `dtype` (or
                `torch_dtype`), and new values for config fields.

        Raises:
            UnsupportedModelError: there is no bridge for the architecture.
            CheckpointError, HubError: the model cannot be found or read.
        """
        return cls(PreTrainedCausalLM.from_pretrained(path, **kwargs))

    @classmethod
    def from_hf_config(cls, config: "PretrainedConfig") -> Self:
        """A bridge for a config in memory: it can make providers and export, but has no weights to load."""
        return cls(config)

    @classmethod
    def from_auto_config(
        cls, megatron_path: str | Path, hf_model_id: str | Path, trust_remote_code: bool = False
    ) -> Self:
        """A bridge for a Megatron checkpoint, with the HF model that it came from."""
        from megatron.bridge.transport.checkpoint_folder import iteration_folder

        iteration_folder(megatron_path)
        return cls.from_hf_pretrained(hf_model_id, trust_remote_code=trust_remote_code)

    @staticmethod
    def list_supported_models() -> list[str]:
        """The HF architectures that have a bridge."""
        return sorted(registered_bridges())

    @staticmethod
    def supports(config: object) -> bool:
        """Whether there is a bridge for a config."""
        architectures = getattr(config, "architectures", None) or ()
        return supported_architecture(architectures, getattr(config, "model_type", None)) is not None

    @classmethod
    def can_handle(cls, path: str | Path, trust_remote_code: bool = False) -> bool:
        """Whether `from_hf_pretrained` can open a folder or hub id."""
        from megatron.bridge.models.hf_pretrained import hub

        try:
            return cls.supports(load_config(hub.resolve(path, weights=False), trust_remote_code=trust_remote_code))
        except BridgeError:
            return False

    @property
    def _model_bridge(self) -> "BridgeHooks":
        """A fresh bridge for the config as it is now; its architecture may have changed."""
        bridge = find_bridge(self.hf_pretrained.config).bridge_class()
        bridge.hf_config = self.hf_pretrained.config
        return bridge

    @property
    def transformer_config(self) -> "Provider":
        """The finalised provider, which is a TransformerConfig."""
        provider = self.to_megatron_provider(load_weights=False)
        provider.finalize()
        return provider

    # Megatron models

    def to_megatron_provider(self, load_weights: bool = True, hf_path: str | Path | None = None) -> "Provider":
        """The provider: a mutable config that builds the Megatron model.

        Args:
            load_weights: load the HF weights as soon as the model is built, before any registered hook runs.
            hf_path: a folder or hub id to load the weights from instead.

        Raises:
            CheckpointError: weights are to be loaded, but there are none.
            UnsupportedConfigError: the config asks for something that cannot be represented.
        """
        from megatron.bridge import runtime

        runtime.enter()
        provider = self._model_bridge.provider_bridge(self.hf_pretrained)
        if load_weights:
            source = self._source(hf_path)
            if not source.has_weights:
                why = source.why_no_weights() or "there are no weights to load; pass load_weights=False"
                raise CheckpointError(f"{source.model_name_or_path}: {why}")
            provider.perform_initialization = False
            provider.register_pre_wrap_hook(lambda chunks: self.load_hf_weights(chunks, hf_path), prepend=True)
        return provider

    def to_megatron_model(
        self, load_weights: bool = True, hf_path: str | Path | None = None, **kwargs: Any
    ) -> "list[MegatronModule]":
        """The Megatron model with the HF weights, for the process groups of this run: a list of chunks.

        Args:
            kwargs: those of `provide_distributed_model`.
        """
        return self.to_megatron_provider(load_weights, hf_path).provide_distributed_model(**kwargs)

    def load_hf_weights[ModelT: "Model"](
        self,
        model: ModelT,
        hf_path: str | Path | None = None,
        allowed_mismatched_params: Sequence[str] | None = None,
        show_progress: bool = False,
        force: bool = False,
    ) -> ModelT:
        """Loads the HF weights into a live model, in place; returns the model.

        Each rank reads only its own slices, and no rank talks to another.

        Args:
            model: a chunk or the list of chunks, bare or wrapped (DDP, Float16Module).
            hf_path: a folder or hub id to load from instead.
            allowed_mismatched_params: the names of Megatron parameters that may keep their values.
            force: load even numbers that do not look like weights.

        Raises:
            PlanError: model and checkpoint do not match; nothing was changed.
            QuantizationError: stored numbers cannot be read as weights, or do not look like any.
        """
        from megatron.bridge.models.conversion import weight_stream

        source = self._source(hf_path)
        self.load_report = weight_stream.load(
            self._model_bridge, source, model, allowed_mismatched_params or (), show_progress, force
        )
        return model

    def get_conversion_tasks(self, model: "Model", hf_path: str | Path | None = None) -> "list[WeightConversionTask]":
        """One task per weight of the whole model, in the same order on every rank (collective)."""
        return self._model_bridge.build_conversion_tasks(self._source(hf_path), model)

    def export_hf_weights(
        self,
        model: "Model",
        cpu: bool = False,
        show_progress: bool = False,
        conversion_tasks: "Iterable[WeightConversionTask | None] | None" = None,
        merge_adapter_weights: bool = True,
        weight_dtype: "torch.dtype | None" = None,
        select: "Callable[[str], bool] | None" = None,
        bucket_bytes: int | None = None,
        quantization: str | None = None,
    ) -> "Iterator[HFWeightTuple]":
        """Streams the HF tensors of the whole model, as (name, tensor), on every rank (collective, lazy).

        Args:
            cpu: yield CPU tensors.
            conversion_tasks: export only these, from `get_conversion_tasks`; they are iterated once.
            merge_adapter_weights: accepted for clients that pass it; a model without adapters has none to merge.
            weight_dtype: convert floating-point tensors to this dtype.
            select: export only the HF tensors whose names it accepts.
            bucket_bytes: the bytes of Megatron weights that are gathered at a time; default: 256 MiB.
            quantization: the form to quantise the weights of linear layers in: "fp8" (blocks of 128 x 128), "mxfp4"
                (fused experts), or "source" for that of the source. Each weight is replaced by its stored tensors.

        Raises:
            PlanError: a weight has no mapping, or the tasks make only part of an HF tensor.
            QuantizationError: an unknown form, or one in which a changed weight cannot be written.

        Example:
            >>> for name, tensor in bridge.export_hf_weights(model, select=lambda name: ".experts." not in name):
            ...     engine.load(name, tensor)
        """
        from megatron.bridge.models.conversion import weight_stream

        return weight_stream.export(
            self._model_bridge,
            self.hf_pretrained,
            model,
            cpu=cpu,
            show_progress=show_progress,
            conversion_tasks=conversion_tasks,
            weight_dtype=weight_dtype,
            select=select,
            bucket_bytes=bucket_bytes or weight_stream.BUCKET_BYTES,
            quantization=quantization,
        )

    def describe_hf_weights(
        self,
        model: "Model",
        conversion_tasks: "Iterable[WeightConversionTask | None] | None" = None,
        weight_dtype: "torch.dtype | None" = None,
    ) -> "list[HFWeightInfo]":
        """Name, shape and dtype of every tensor that `export_hf_weights` yields, without moving any data.

        Args:
            conversion_tasks: those of `get_conversion_tasks`; by default they are made (collective).
        """
        from megatron.bridge.models.conversion import weight_stream

        tasks = self.get_conversion_tasks(model) if conversion_tasks is None else conversion_tasks
        return weight_stream.describe(tasks, weight_dtype)

    # Hugging Face folders

    def save_hf_weights(
        self,
        model: "Model",
        path: str | Path,
        show_progress: bool = False,
        strict: bool | None = None,
        merge_adapter_weights: bool = True,
        distributed_save: bool = False,
        save_every_n_ranks: int = 1,
        weight_dtype: "torch.dtype | None" = None,
        quantization: str | None = None,
    ) -> dict[str, object] | None:
        """Writes a live model's weights as safetensors, with the files and the order of the source (collective).

        Args:
            strict: True: the tensors must be exactly those of the source. False: differences are logged, and kept in
                `export_report`. Default: only prediction layers that the model does not have may be absent.
            distributed_save: every rank writes its own byte ranges of the files, and nothing is gathered; `path` must
                be on a file system that all ranks share. Otherwise rank 0 writes.
            save_every_n_ranks: accepted for clients that pass it; ranges are written by the ranks that hold them.
            quantization: see `export_hf_weights`; with it, rank 0 writes.

        Returns:
            The `quantization_config` that describes what was written; `None` for plain weights.

        Raises:
            PlanError: tensors of one side are missing from the other; nothing is written.
        """
        from megatron.bridge.models.conversion import live_save
        from megatron.bridge.models.conversion.exported_config import ExportedConfig

        written = live_save.save(
            self._model_bridge,
            self.hf_pretrained,
            model,
            Path(path),
            exported=ExportedConfig(self.hf_pretrained.config, {}),
            show_progress=show_progress,
            strict=strict,
            distributed_save=distributed_save,
            weight_dtype=weight_dtype,
            quantization=quantization,
        )
        self._note(written.report, path)
        return written.quantization_config

    def save_hf_pretrained(
        self,
        model: "Model",
        path: str | Path,
        show_progress: bool = False,
        source_path: str | Path | None = None,
        strict: bool | None = None,
        merge_adapter_weights: bool = True,
        distributed_save: bool = False,
        save_every_n_ranks: int = 1,
        weight_dtype: "torch.dtype | None" = None,
        quantization: str | None = None,
    ) -> None:
        """Writes a live model as an HF folder: weights, config, tokenizer and the other files (collective).

        `config.json` describes the model as it is now: where its provider was changed, it has the model's values.

        Args:
            source_path: the folder or hub id to take config, tokenizer and other files from; default: the bridge's.
            strict: see `save_hf_weights`. With True, the config may not differ from the source's either.
            distributed_save, save_every_n_ranks, quantization: see `save_hf_weights`.

        Raises:
            PlanError: a difference that `strict` refuses; nothing is written.
            UnsupportedConfigError: the model was changed in a way that no HF config of its architecture can say.
        """
        from megatron.bridge.models.conversion import live_save
        from megatron.bridge.models.conversion.exported_config import exported_config
        from megatron.bridge.models.model_building import config_of, unwrap_model
        from megatron.bridge.transport import process_groups

        source, bridge = self._source(source_path), self._model_bridge
        exported = exported_config(bridge, source, config_of(unwrap_model(model)[0]))
        bridge.hf_config = exported.config
        written = live_save.save(
            bridge,
            self.hf_pretrained,
            model,
            Path(path),
            exported=exported,
            show_progress=show_progress,
            strict=strict,
            distributed_save=distributed_save,
            weight_dtype=weight_dtype,
            quantization=quantization,
        )
        self._note(written.report, path)
        if process_groups.rank() == 0:
            source.save_artifacts(Path(path), written.quantization_config, exported.config, written.dtype)
        process_groups.barrier()

    # Megatron checkpoints

    @classmethod
    def import_ckpt(
        cls,
        hf_model_id: str | Path,
        megatron_path: str | Path,
        *,
        low_memory_save: bool = False,
        torch_dtype: DtypeLike = None,
        show_progress: bool = False,
        resources: "Resources | None" = None,
        force: bool = False,
        dtype: DtypeLike = None,
        **kwargs: Any,
    ) -> None:
        """Converts an HF model into a Megatron checkpoint, streamed: the model is never in memory.

        Args:
            hf_model_id: a folder or a hub id.
            megatron_path: a new folder.
            low_memory_save: accepted for clients that pass it; little memory is used in any case.
            torch_dtype, dtype: convert the weights to this dtype (two names of one argument); default: they keep the
                one they are stored in.
            resources: memory, threads and share of the work. By default, the ranks of torchrun share the files.
            force: convert even numbers that do not look like weights.
            kwargs: those of `from_hf_pretrained`.

        Raises:
            PlanError: the checkpoint and the model do not match; nothing is written.
            QuantizationError: stored numbers cannot be read as weights, or do not look like any.

        Example: `AutoBridge.import_ckpt("Qwen/Qwen3-0.6B", "checkpoints/qwen3")`
        """
        cls.from_hf_pretrained(hf_model_id, **kwargs).write_megatron_checkpoint(
            megatron_path, requested_dtype(dtype, torch_dtype), show_progress, resources, force
        )

    def write_megatron_checkpoint(
        self,
        path: str | Path,
        torch_dtype: DtypeLike = None,
        show_progress: bool = False,
        resources: "Resources | None" = None,
        force: bool = False,
    ) -> None:
        """Like `import_ckpt`, for a bridge that exists already. By default, the dtype is the one it was made with."""
        from megatron.bridge import runtime

        runtime.enter()
        from megatron.bridge.models.conversion import offline
        from megatron.bridge.models.transformer.decoder_config import set_dtype
        from megatron.bridge.transport import process_groups

        dtype = requested_dtype(torch_dtype) or self.hf_pretrained.dtype
        provider = self.to_megatron_provider(load_weights=False)
        if dtype is not None:
            set_dtype(provider, dtype)
        offline.import_checkpoint(
            self._model_bridge,
            self.hf_pretrained,
            provider,
            Path(path),
            dtype=dtype,
            resources=resources,
            show_progress=show_progress,
            force=force,
        )
        process_groups.barrier()

    def export_ckpt(
        self,
        megatron_path: str | Path,
        hf_path: str | Path,
        show_progress: bool = False,
        strict: bool | None = None,
        source_path: str | Path | None = None,
        torch_dtype: DtypeLike = None,
        resources: "Resources | None" = None,
        quantization: str | None = None,
        dtype: DtypeLike = None,
    ) -> None:
        """Converts a Megatron checkpoint, saved from any parallel layout, into an HF folder, streamed.

        Args:
            megatron_path: the checkpoint, or one of its iterations.
            hf_path: the output folder.
            strict: see `save_hf_pretrained`.
            source_path: the folder or hub id to take the config, the tokenizer and the names of weight files from;
                default: the bridge's.
            torch_dtype, dtype: convert the weights to this dtype (two names of one argument); default: they keep the
                one they are stored in.
            resources: memory, threads and share of the work. By default, the ranks of torchrun share the files.
            quantization: see `export_hf_weights`.

        Raises:
            PlanError, UnsupportedConfigError: as for `save_hf_pretrained`.
        """
        from megatron.bridge import runtime

        runtime.enter()
        from megatron.bridge.models.conversion import offline
        from megatron.bridge.models.conversion.exported_config import exported_config
        from megatron.bridge.models.live_checkpoint import load_model_config
        from megatron.bridge.transport import process_groups
        from megatron.bridge.transport.checkpoint_folder import iteration_folder

        folder = iteration_folder(megatron_path)
        provider, _ = load_model_config(folder)
        source, bridge = self._source(source_path), self._model_bridge
        exported = exported_config(bridge, source, provider)
        bridge.hf_config = exported.config
        report = offline.export_checkpoint(
            bridge,
            source,
            provider,
            folder,
            Path(hf_path),
            exported=exported,
            dtype=requested_dtype(dtype, torch_dtype),
            strict=strict,
            resources=resources,
            show_progress=show_progress,
            quantization=quantization,
        )
        self._note(report, hf_path)
        process_groups.barrier()

    def save_megatron_model(
        self,
        model: "list[MegatronModule]",
        path: str | Path,
        hf_tokenizer_path: str | Path | None = None,
        low_memory_save: bool = False,
        hf_tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a live model as a Megatron checkpoint (collective).

        Args:
            hf_tokenizer_path: the folder or hub id to take the tokenizer from; default: the bridge's.
            low_memory_save: accepted for clients that pass it.
            hf_tokenizer_kwargs: settings to load the tokenizer with (`AutoTokenizer.from_pretrained`), and so to save.
        """
        from megatron.bridge.models import live_checkpoint
        from megatron.bridge.transport import process_groups
        from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER

        folder = live_checkpoint.save_megatron_model(model, path, self.hf_pretrained.model_name_or_path)
        if process_groups.rank() == 0:
            source = self._source(hf_tokenizer_path)
            source.save_artifacts(folder / TOKENIZER_FOLDER)
            if hf_tokenizer_kwargs:
                source.load_tokenizer(**hf_tokenizer_kwargs).save_pretrained(folder / TOKENIZER_FOLDER)
        process_groups.barrier()

    def load_megatron_model(
        self, path: str | Path, *, mp_overrides: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> "list[MegatronModule]":
        """Builds the model of a Megatron checkpoint over this run's ranks and loads its weights (collective).

        Args:
            mp_overrides: values of parallel sizes, which default to 1, or of other provider fields.
            kwargs: accepted for clients that pass more.
        """
        from megatron.bridge.models.live_checkpoint import load_megatron_model

        return load_megatron_model(path, mp_overrides)

    @staticmethod
    def get_hf_model_id_from_checkpoint(path: str | Path) -> str | None:
        """The hub id or folder that a Megatron checkpoint was made from; `None` if it does not say."""
        from megatron.bridge.models.run_config import read_run_config
        from megatron.bridge.transport.checkpoint_folder import iteration_folder

        return (read_run_config(iteration_folder(path)).get("checkpoint") or {}).get("hf_model_id")

    def _note(self, report: "ExportReport", out: str | Path) -> None:
        """Keeps what an export wrote otherwise than the source has it, and logs it on rank 0."""
        from megatron.bridge.transport import process_groups

        self.export_report = report
        if (lines := report.lines()) and process_groups.rank() == 0:
            _LOGGER.warning("%s is not as its source:\n%s", out, "\n".join(f"  - {line}" for line in lines))

    def _source(self, path: str | Path | None) -> PreTrainedCausalLM:
        """The HF model to read from: this bridge's, or the one at a path."""
        if path is None:
            return self.hf_pretrained
        trust_remote_code = getattr(self.hf_pretrained, "trust_remote_code", False)
        return _as_read(PreTrainedCausalLM.from_pretrained(path, trust_remote_code=trust_remote_code))

    def __repr__(self) -> str:
        return f"AutoBridge({self.hf_pretrained!r})"
