"""`MegatronModelBridge`: what a model family declares, and the hooks through which it says what is unusual."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import stacked_experts
from megatron.bridge.models.conversion.fields.activations import activation_functions
from megatron.bridge.models.conversion.fields.common import DECODER, FIXED_FIELDS, IRRELEVANT_FIELDS
from megatron.bridge.models.conversion.fields.part import (
    FieldMapping,
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

    from megatron.bridge.models.conversion.plan import WeightConversionTask
    from megatron.bridge.models.conversion.weight_stream import HFWeightTuple
    from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM


class MegatronModelBridge(ABC):
    """A model family: how its HF config and HF weights correspond to Megatron's.

    A family registers with `register_bridge`, lists its mappings in `mapping_registry`, and overrides a hook for
    whatever is unusual. An instance serves one config.

    Attributes:
        hf_config: the HF config, set before `mapping_registry()` is called.
        CONFIG: the parts of the config, from which the five tables below are made. A subclass may state a table of its
            own instead, as bridges of other projects do.
        CONFIG_MAPPING: HF field -> provider field (or fields), for fields with the same value on both sides.
        CONFIG_CHECKED: HF fields that parts or hooks read in another way.
        CONFIG_IRRELEVANT: HF fields that do not change the computation, with the reason.
        CONFIG_FIXED: HF fields that must have the given value, or none.
        CONFIG_DEFAULTS: provider fields that are the same for every model of the family.
        PROVIDER_CLASS: a class, or its dotted name, with which megatron-core is not imported to list the families;
            default `GPTModelProvider`.
    """

    CONFIG: ClassVar[Parts] = DECODER
    CONFIG_MAPPING: ClassVar[FieldMapping | Sequence[tuple[str, str]]]
    CONFIG_CHECKED: ClassVar[tuple[str, ...]]
    CONFIG_IRRELEVANT: ClassVar[Mapping[str, str]]
    CONFIG_FIXED: ClassVar[Mapping[str, Any]]
    CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]]
    PROVIDER_CLASS: ClassVar[Any] = None

    hf_config: "PretrainedConfig"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "CONFIG" in vars(cls):
            cls._make_tables()

    @classmethod
    def _make_tables(cls) -> None:
        tables = combined(cls.CONFIG)
        made = {
            "CONFIG_MAPPING": tables.same,
            "CONFIG_CHECKED": tables.reads,
            "CONFIG_IRRELEVANT": tables.irrelevant,
            "CONFIG_FIXED": tables.fixed,
            "CONFIG_DEFAULTS": tables.defaults,
        }
        for name, table in made.items():
            if name not in vars(cls):
                setattr(cls, name, table)

    # Registration

    @staticmethod
    def register_bridge(
        *,
        source: Any,
        target: Any,
        provider: Any = None,
        model_type: str | None = None,
        same_config: Mapping[str, str] | None = None,
    ) -> Callable[[type["MegatronModelBridge"]], type["MegatronModelBridge"]]:
        """Class decorator: this bridge serves the HF architecture `source`. The last registration wins.

        Args:
            source: HF model class, or its name as in `config.architectures`.
            target: Megatron model class, or its name.
            provider: provider class; default: the bridge's `PROVIDER_CLASS`.
            model_type: HF `model_type`, with which a config can be exported that never came from HF.
            same_config: values of `model_type` that transformers does not know, each with the known one whose fields
                models of this architecture have: their `config.json` is read with its config class, without the
                model's own code.
        """
        architecture = source if isinstance(source, str) else source.__name__

        def decorate(bridge_class: type["MegatronModelBridge"]) -> type["MegatronModelBridge"]:
            if provider is not None:
                bridge_class.PROVIDER_CLASS = provider
            register(RegisteredBridge(architecture, bridge_class, target, model_type))
            add_aliases(architecture, same_config or {})
            return bridge_class

        return decorate

    # What a family declares

    @abstractmethod
    def mapping_registry(self) -> MegatronMappingRegistry:
        """The mappings of every weight, for the config in `self.hf_config`."""

    def hf_config_to_provider_kwargs(self, hf_config: "PretrainedConfig") -> dict[str, Any]:
        """The provider's fields for an HF config: the inverse of `megatron_to_hf_config`.

        Both hooks are made of `CONFIG`. An override extends the result of `super()`.

        Raises:
            UnsupportedConfigError: a field that the family does not know, or a value that it cannot represent.
        """
        known = {*dict(self.CONFIG_MAPPING), *self.CONFIG_CHECKED, *self.CONFIG_IRRELEVANT, *IRRELEVANT_FIELDS}
        try:
            check_fields(hf_config, known, {**FIXED_FIELDS, **self.CONFIG_FIXED})
            fields = self.config_fields(hf_config)
        except UnsupportedConfigError as error:
            raise UnsupportedConfigError(f"{self._where(hf_config)}: {error}") from None
        if isinstance(name := fields.get("activation_func"), str):
            fields["activation_func"] = activation_functions()[name]
        fields["make_vocab_size_divisible_by"] = self.make_vocab_size_divisible_by(hf_config.vocab_size)
        return fields

    def config_fields(self, hf_config: Any) -> dict[str, Any]:
        """The provider's fields as the parts give them: without torch, and with the activation function's name.

        Raises:
            UnsupportedConfigError: a value that cannot be represented. Unknown fields are not looked for.
        """
        return {**self.CONFIG_DEFAULTS, **provider_fields(hf_config, self.CONFIG, dict(self.CONFIG_MAPPING))}

    def provider_bridge(self, hf_pretrained: "PreTrainedCausalLM") -> Any:
        """The provider for a model.

        Args:
            hf_pretrained: anything with a `config`.
        """
        from megatron.bridge.models.gpt_provider import GPTModelProvider, set_dtype

        hf_config = hf_pretrained.config
        provider_class = self.PROVIDER_CLASS or GPTModelProvider
        if isinstance(provider_class, str):
            module, _, name = provider_class.rpartition(".")
            provider_class = getattr(importlib.import_module(module), name)
        provider = provider_class(**self.hf_config_to_provider_kwargs(hf_config))
        provider.mtp_num_layers = self._num_mtp_layers(hf_pretrained, provider.mtp_num_layers)
        set_dtype(provider, self.dtype_from_hf(hf_config))
        return provider

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        """The HF config fields that describe `provider`: the inverse of `hf_config_to_provider_kwargs`.

        Fields that say nothing about the model (token ids and the like) are left to the source config.
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
        """Reads the HF tensors of one mapping; overridden by families whose stored tensors need a change first.

        An override makes every rank read whole tensors instead of its own slices.

        Args:
            hf_param: the mapping's HF name, or names by role.
            hf_state_dict: reads tensors by name.

        Returns:
            The tensor, or the tensors by role.
        """
        if isinstance(hf_param, str):
            return hf_state_dict[hf_param]
        return {role: hf_state_dict[name] for role, name in hf_param.items()}

    def maybe_modify_converted_hf_weight(
        self, task: "WeightConversionTask", weights: "dict[str, Tensor]", hf_state_dict: "Mapping[str, Tensor] | None"
    ) -> "dict[str, Tensor]":
        """Changes what an export gives for one task; the inverse of `maybe_modify_loaded_hf_weight`.

        Args:
            task: the task that completed the tensors.
            weights: whole HF tensors by name.
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
        """The dtype that the HF config states; `default` (float32 if not given) where it states none."""
        import torch

        dtype = getattr(hf_config, "dtype", None) or default or torch.float32
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype

    @staticmethod
    def make_vocab_size_divisible_by(vocab_size: int) -> int:
        """The largest power of two up to 128 that divides the vocabulary: no padding at tensor-parallel size 1."""
        return min(vocab_size & -vocab_size, 128)

    def registry(self, hf_pretrained: Any = None) -> MegatronMappingRegistry:
        """The mappings; raises if `hf_config` was not set, which they depend on.

        Args:
            hf_pretrained: if it has weights, experts are mapped as it stores them.
        """
        if getattr(self, "hf_config", None) is None:
            raise UnsupportedConfigError(f"{type(self).__name__}: hf_config must be set before mapping_registry()")
        registry = self.mapping_registry()
        has_weights = getattr(hf_pretrained, "has_weights", False)
        return stacked_experts.as_stored(registry, hf_pretrained.tensor_names) if has_weights else registry

    def _num_mtp_layers(self, hf_pretrained: Any, stated: int | None) -> int | None:
        """How many multi-token prediction layers a model has: by its checkpoint, or if there is none, its config.

        transformers ignores these layers and does not save them, and not every config counts them.
        """
        if not getattr(hf_pretrained, "has_weights", False):
            return stated
        self.hf_config = hf_pretrained.config
        projections = self.registry().get_mappings_by_pattern("mtp.layers.*.eh_proj.weight")
        return sum(mapping.hf_param in hf_pretrained.tensor_names for mapping in projections) or None

    def _where(self, hf_config: "PretrainedConfig") -> str:
        name = getattr(hf_config, "name_or_path", "") or ""
        return f"{type(hf_config).__name__}{f' of {name}' if name else ''}"

    # Execution: the same functions that AutoBridge calls

    def build_conversion_tasks(
        self, hf_pretrained: Any, models: Any, weight_dtype: "torch.dtype | None" = None
    ) -> "list[WeightConversionTask]":
        """The tasks of the whole model, the same list on every rank (collective).

        Args:
            weight_dtype: of what an export of these tasks gives; default: that of the Megatron weights.
        """
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        return weight_stream.build_global_tasks(self, hf_pretrained, models, weight_dtype)

    def load_weights_hf_to_megatron(
        self, hf_pretrained: Any, model: Any, allowed_mismatched_params: Sequence[str] | None = None
    ) -> Any:
        """Loads this rank's part of the weights, without communication; returns the model."""
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        weight_stream.load(self, hf_pretrained, model, allowed_mismatched_params or ())
        return model

    def stream_weights_megatron_to_hf(
        self, model: Any, hf_pretrained: Any, cpu: bool = True, **kwargs: Any
    ) -> "Iterator[HFWeightTuple]":
        """Yields the HF tensors of the whole model on every rank (collective, lazy)."""
        from megatron.bridge.models.conversion import weight_stream

        self.hf_config = hf_pretrained.config
        return weight_stream.export(self, hf_pretrained, model, cpu=cpu, **kwargs)


MegatronModelBridge._make_tables()
