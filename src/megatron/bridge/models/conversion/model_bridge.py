"""`MegatronModelBridge`: the base class of every bridge, with the declarations and hooks of a model family."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import stored_names
from megatron.bridge.models.conversion.fields.activations import activation_functions
from megatron.bridge.models.conversion.fields.common import DECODER, FIXED_FIELDS, IRRELEVANT_FIELDS
from megatron.bridge.models.conversion.fields.part import (
    FieldMapping,
    HFConfig,
    Parts,
    check_fields,
    combined,
    hf_fields,
    provider_fields,
)
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.registered import RegisteredBridge, register, registered_for
from megatron.bridge.models.hf_pretrained.config_aliases import add_aliases

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.hooks import Model
    from megatron.bridge.models.conversion.plan import WeightConversionTask
    from megatron.bridge.models.conversion.weight_stream import HFWeightTuple
    from megatron.bridge.models.hf_pretrained.hf_model import HFModel
    from megatron.bridge.models.model_provider import Provider


class MegatronModelBridge(ABC):
    """How the config and the weights of one HF architecture correspond to Megatron's.

    A bridge answers two questions. `CONFIG` says what each field of the HF config means in the provider (the Megatron
    config); `mapping_registry()` says which HF tensors each Megatron weight is made of. Both are put together from
    shared pieces, the parts in `fields` and the blocks in `blocks`:

        @MegatronModelBridge.register_bridge(source="NewForCausalLM", target="GPTModel", model_type="new")
        class NewBridge(MegatronModelBridge):
            CONFIG = (
                *fields.DECODER,  # sizes, heads, norms, activation function, rope
                fields.same("mlp_bias", use_qkv_bias="add_qkv_bias"),  # copied, here under another name
                fields.fixed(use_alibi=False),  # no other value can be represented
                fields.irrelevant("training", "z_loss_weight"),  # changes no logits
                fields.defaults(qk_layernorm=True),  # true of every model, though no HF field says so
            )

            def mapping_registry(self) -> MegatronMappingRegistry:
                config = self.hf_config
                return MegatronMappingRegistry(
                    *blocks.embeddings(tied=config.tie_word_embeddings),
                    *blocks.pre_norms(),
                    *blocks.attention(qkv_bias=config.use_qkv_bias, qk_norm=True),
                    *blocks.gated_mlp(bias=config.mlp_bias),
                )

    From `CONFIG` follow five tables, listed below, and two hooks: `hf_config_to_provider_kwargs` reads an HF config
    into provider fields, `megatron_to_hf_config` writes a provider's fields as an HF config. An HF field that no part
    mentions is an error, so none is overlooked, unless transformers provably does not read it (`fields/unread.py`).
    What parts and blocks cannot express goes into an overridden hook.

    An instance serves one config.

    Attributes:
        hf_config: the HF config; set before `mapping_registry()` is called.
        CONFIG: the parts; a later one replaces what earlier ones say about the same HF field. A subclass may also
            define a table itself, as bridges written for other projects do.
        CONFIG_MAPPING: HF field -> the provider field (or fields) with the same value.
        CONFIG_CHECKED: HF fields that functions of parts, or overridden hooks, read.
        CONFIG_IRRELEVANT: HF field -> why it does not change the computation.
        CONFIG_FIXED: HF field -> the only value that it may have, apart from `None`.
        CONFIG_DEFAULTS: provider field -> its value in every model of the family.
        PROVIDER_CLASS: the provider's class, or its dotted name, which lets families be listed without importing
            megatron-core; default `GPTModelProvider`.
    """

    CONFIG: ClassVar[Parts] = DECODER
    CONFIG_MAPPING: ClassVar[FieldMapping | Sequence[tuple[str, str]]]
    CONFIG_CHECKED: ClassVar[tuple[str, ...]]
    CONFIG_IRRELEVANT: ClassVar[Mapping[str, str]]
    CONFIG_FIXED: ClassVar[Mapping[str, object]]
    CONFIG_DEFAULTS: ClassVar[Mapping[str, object]]
    PROVIDER_CLASS: ClassVar["type[Provider] | str | None"] = None

    hf_config: "PretrainedConfig"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "CONFIG" in vars(cls):
            cls._make_tables()

    @classmethod
    def _make_tables(cls) -> None:
        """Makes the tables that the class does not define itself."""
        tables = combined(cls.CONFIG)
        by_name = {
            "CONFIG_MAPPING": tables.same,
            "CONFIG_CHECKED": tables.reads,
            "CONFIG_IRRELEVANT": tables.irrelevant,
            "CONFIG_FIXED": tables.fixed,
            "CONFIG_DEFAULTS": tables.defaults,
        }
        for name, table in by_name.items():
            if name not in vars(cls):
                setattr(cls, name, table)

    # Registration

    @staticmethod
    def register_bridge(
        *,
        source: type | str,
        target: type | str,
        provider: "type[Provider] | str | None" = None,
        model_type: str | None = None,
        same_config: Mapping[str, str] | None = None,
    ) -> Callable[[type["MegatronModelBridge"]], type["MegatronModelBridge"]]:
        """Class decorator: the bridge serves the HF architecture `source`. The last registration wins.

        Args:
            source: the HF model class, or its name as it stands in `config.architectures`.
            target: the Megatron model class, or its name.
            provider: the provider class; default: the bridge's `PROVIDER_CLASS`.
            model_type: the HF `model_type`, written into exported configs.
            same_config: for each `model_type` that transformers does not know, a known one with the same fields. Its
                config class then reads the `config.json` of models of this architecture, without their own code.

        Example:
            >>> @MegatronModelBridge.register_bridge(
            ...     source="MiMoForCausalLM", target="GPTModel", model_type="mimo", same_config={"mimo": "qwen2"}
            ... )
            ... class MiMoBridge(Qwen2Bridge): ...
        """
        architecture = source if isinstance(source, str) else source.__name__

        def decorate(bridge_class: type["MegatronModelBridge"]) -> type["MegatronModelBridge"]:
            if provider is not None:
                bridge_class.PROVIDER_CLASS = provider
            register(RegisteredBridge(architecture, bridge_class, target, model_type))
            add_aliases(architecture, same_config or {})
            return bridge_class

        return decorate

    # What a family defines

    @abstractmethod
    def mapping_registry(self) -> MegatronMappingRegistry:
        """The mappings of all weights, for the config in `self.hf_config`."""

    def hf_config_to_provider_kwargs(self, hf_config: "PretrainedConfig") -> dict[str, Any]:
        """The provider fields for an HF config; the inverse of `megatron_to_hf_config`.

        Both follow from `CONFIG`: an override adds to, or changes, what `super()` returns.

        Raises:
            UnsupportedConfigError: a field that the family does not know, or a value that it cannot represent.
        """
        try:
            self.unread_fields(hf_config)
            fields = self.config_fields(hf_config)
        except UnsupportedConfigError as error:
            raise UnsupportedConfigError(f"{self._where(hf_config)}: {error}") from None
        if isinstance(name := fields.get("activation_func"), str):
            fields["activation_func"] = activation_functions()[name]
        fields["make_vocab_size_divisible_by"] = self.make_vocab_size_divisible_by(hf_config.vocab_size)
        return fields

    def unread_fields(self, hf_config: HFConfig) -> dict[str, Any]:
        """The fields that the family does not know, but that transformers provably does not read, with their values.

        Raises:
            UnsupportedConfigError: any other field that the family does not know, or a value that it cannot represent.
        """
        known = {*dict(self.CONFIG_MAPPING), *self.CONFIG_CHECKED, *self.CONFIG_IRRELEVANT, *IRRELEVANT_FIELDS}
        return check_fields(hf_config, known, {**FIXED_FIELDS, **self.CONFIG_FIXED})

    def config_fields(self, hf_config: HFConfig) -> dict[str, Any]:
        """The provider fields as the parts give them: without torch, the activation function as its name.

        Raises:
            UnsupportedConfigError: a value that cannot be represented. Unknown fields are not looked for.
        """
        return {**self.CONFIG_DEFAULTS, **provider_fields(hf_config, self.CONFIG, dict(self.CONFIG_MAPPING))}

    def provider_bridge(self, hf_pretrained: "HFModel") -> "Provider":
        """The provider for a model: its config in Megatron's terms, ready to be changed.

        Args:
            hf_pretrained: anything with a `config`; if it has weights, prediction layers are counted there.
        """
        from megatron.bridge.models.gpt_provider import GPTModelProvider, set_dtype

        hf_config = hf_pretrained.config
        provider_class = self.PROVIDER_CLASS or GPTModelProvider
        if isinstance(provider_class, str):
            module, _, name = provider_class.rpartition(".")
            provider_class = getattr(importlib.import_module(module), name)
        provider = provider_class(**self.hf_config_to_provider_kwargs(hf_config))
        provider.mtp_num_layers = self._num_mtp_layers(hf_pretrained, provider.mtp_num_layers)
        set_dtype(provider, self.dtype_from_hf(hf_config, _stored_dtype(hf_pretrained)))
        return provider

    def megatron_to_hf_config(self, provider: "Provider") -> dict[str, Any]:
        """The HF fields that describe `provider`; the inverse of `hf_config_to_provider_kwargs`.

        Fields that say nothing about the model, such as token ids, come from the source config.
        """
        values = hf_fields(provider, self.CONFIG, dict(self.CONFIG_MAPPING))
        entry = registered_for(type(self))
        values["architectures"] = [entry.architecture]
        values["model_type"] = entry.model_type
        values["dtype"] = str(provider.params_dtype).removeprefix("torch.")
        return values

    def maybe_modify_loaded_hf_weight(
        self, hf_param: str | dict[str, str], hf_state_dict: "Mapping[str, Tensor]"
    ) -> "Tensor | dict[str, Tensor]":
        """Reads the HF tensors of one mapping; overridden where stored tensors must be changed first.

        With an override, each rank reads whole tensors instead of its own slices.

        Args:
            hf_param: the mapping's HF name, or names by role.
            hf_state_dict: the stored tensors, read when looked up.

        Returns:
            The tensor, or the tensors by role.
        """
        if isinstance(hf_param, str):
            return hf_state_dict[hf_param]
        return {role: hf_state_dict[name] for role, name in hf_param.items()}

    def maybe_modify_converted_hf_weight(
        self, task: "WeightConversionTask", weights: "dict[str, Tensor]", hf_state_dict: "Mapping[str, Tensor] | None"
    ) -> "dict[str, Tensor]":
        """Changes the HF tensors that one task exports; the inverse of `maybe_modify_loaded_hf_weight`.

        Args:
            task: the task that completed the tensors.
            weights: the whole HF tensors, by name.
            hf_state_dict: the source checkpoint, or `None`.
        """
        return weights

    # Helpers

    @property
    def changes_loaded_weights(self) -> bool:
        """Whether the family overrides `maybe_modify_loaded_hf_weight`, so that loads need whole tensors."""
        return type(self).maybe_modify_loaded_hf_weight is not MegatronModelBridge.maybe_modify_loaded_hf_weight

    @property
    def changes_exported_weights(self) -> bool:
        """Whether the family overrides `maybe_modify_converted_hf_weight`, so that exports need whole tensors."""
        hook = type(self).maybe_modify_converted_hf_weight
        return hook is not MegatronModelBridge.maybe_modify_converted_hf_weight

    @staticmethod
    def dtype_from_hf(hf_config: "PretrainedConfig", default: "torch.dtype | None" = None) -> "torch.dtype":
        """The dtype that the HF config states; if it states none, `default`, or else float32."""
        import torch

        dtype = getattr(hf_config, "dtype", None) or default or torch.float32
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype

    @staticmethod
    def make_vocab_size_divisible_by(vocab_size: int) -> int:
        """What the number of rows on each rank is a multiple of: 1, so that rows are added only as ranks need them."""
        return 1

    def registry(self, hf_pretrained: "HFModel | None" = None) -> MegatronMappingRegistry:
        """The mappings, under the names that `hf_pretrained` has for its tensors, if it has weights.

        Raises:
            CheckpointError: the names are those of a model that wraps this one.
            UnsupportedConfigError: `hf_config`, on which mappings depend, has not been set.
        """
        if getattr(self, "hf_config", None) is None:
            raise UnsupportedConfigError(f"{type(self).__name__}: hf_config must be set before mapping_registry()")
        registry = self.mapping_registry()
        if hf_pretrained is None or not getattr(hf_pretrained, "has_weights", False):
            return registry
        rename = partial(stored_names.transformers_names, type(self.hf_config).model_type)
        return stored_names.as_stored(registry, hf_pretrained.tensor_names, rename, hf_pretrained.model_name_or_path)

    def _num_mtp_layers(self, hf_pretrained: "HFModel", stated: int | None) -> int | None:
        """The number of multi-token prediction layers in the checkpoint; without one, that of the config.

        transformers neither computes nor saves these layers, and not every config counts them.
        """
        if not getattr(hf_pretrained, "has_weights", False):
            return stated
        self.hf_config = hf_pretrained.config
        projections = self.registry(hf_pretrained).get_mappings_by_pattern("mtp.layers.*.eh_proj.weight")
        return sum(mapping.hf_param in hf_pretrained.tensor_names for mapping in projections) or None

    def _where(self, hf_config: "PretrainedConfig") -> str:
        name = getattr(hf_config, "name_or_path", "") or ""
        return f"{type(hf_config).__name__}{f' of {name}' if name else ''}"

    # Conversion, by the functions that AutoBridge calls too

    def build_conversion_tasks(
        self, hf_pretrained: "HFModel", models: "Model", weight_dtype: "torch.dtype | None" = None
    ) -> "list[WeightConversionTask]":
        """The tasks of the whole model, the same list on every rank (collective).

        Args:
            weight_dtype: the dtype in which these tasks are exported; default: that of the Megatron weights.
        """
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        return weight_stream.build_global_tasks(self, hf_pretrained, models, weight_dtype)

    def load_weights_hf_to_megatron[ModelT: "Model"](
        self, hf_pretrained: "HFModel", model: ModelT, allowed_mismatched_params: Sequence[str] | None = None
    ) -> ModelT:
        """Loads this rank's part of the weights, without communication; returns the model."""
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        weight_stream.load(self, hf_pretrained, model, allowed_mismatched_params or ())
        return model

    def stream_weights_megatron_to_hf(
        self, model: "Model", hf_pretrained: "HFModel", cpu: bool = True, **kwargs: Any
    ) -> "Iterator[HFWeightTuple]":
        """Yields the HF tensors of the whole model on every rank (collective, lazy).

        Args:
            kwargs: of `weight_stream.export`.
        """
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        return weight_stream.export(self, hf_pretrained, model, cpu=cpu, **kwargs)


def _stored_dtype(hf_pretrained: "HFModel") -> "torch.dtype | None":
    """The dtype that transformers takes for a model whose config states none: that of its first weight."""
    if getattr(hf_pretrained.config, "dtype", None) is not None or not getattr(hf_pretrained, "has_weights", False):
        return None
    return next((info.dtype for info in hf_pretrained.state.infos.values() if info.dtype.is_floating_point), None)


MegatronModelBridge._make_tables()
