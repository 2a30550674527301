"""What the conversion code calls on a bridge: all of it is in `MegatronModelBridge`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from megatron.bridge.models.conversion.fields.part import FieldMapping, Parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.plan import WeightConversionTask
    from megatron.bridge.models.hf_pretrained.hf_model import HFModel
    from megatron.bridge.models.model_provider import Provider

type Model = nn.Module | Sequence[nn.Module]  # a live model: its chunk or chunks, bare or wrapped (DDP, Float16Module)


class WeightHooks(Protocol):
    """What a bridge says about weights: the mappings, and the hooks by which a family changes tensors."""

    @property
    def changes_loaded_weights(self) -> bool: ...

    @property
    def changes_exported_weights(self) -> bool: ...

    def unread_fields(self, hf_config: "PretrainedConfig") -> dict[str, Any]: ...

    def registry(self, hf_pretrained: "HFModel | None" = None) -> "MegatronMappingRegistry": ...

    def maybe_modify_loaded_hf_weight(
        self, hf_param: str | dict[str, str], hf_state_dict: "Mapping[str, Tensor]"
    ) -> "Tensor | dict[str, Tensor]": ...

    def maybe_modify_converted_hf_weight(
        self, task: "WeightConversionTask", weights: "dict[str, Tensor]", hf_state_dict: "Mapping[str, Tensor] | None"
    ) -> "dict[str, Tensor]": ...


class BridgeHooks(WeightHooks, Protocol):
    """What a bridge says about weights and config."""

    CONFIG: ClassVar[Parts]
    CONFIG_MAPPING: ClassVar[FieldMapping | Sequence[tuple[str, str]]]
    CONFIG_CHECKED: ClassVar[tuple[str, ...]]
    CONFIG_IRRELEVANT: ClassVar[Mapping[str, str]]
    CONFIG_FIXED: ClassVar[Mapping[str, object]]
    CONFIG_DEFAULTS: ClassVar[Mapping[str, object]]
    PROVIDER_CLASS: ClassVar["type[Provider] | str | None"]

    hf_config: "PretrainedConfig"

    def hf_config_to_provider_kwargs(self, hf_config: "PretrainedConfig") -> dict[str, Any]: ...

    def build_conversion_tasks(
        self, hf_pretrained: "HFModel", models: Model, weight_dtype: "torch.dtype | None" = None
    ) -> "list[WeightConversionTask]": ...

    def provider_bridge(self, hf_pretrained: "HFModel") -> "Provider": ...

    def megatron_to_hf_config(self, provider: "Provider") -> dict[str, Any]: ...
