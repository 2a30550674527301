"""The table of supported architectures, filled by the families as they are imported."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.bridge.errors import UnsupportedModelError
from megatron.bridge.models.hf_pretrained.config_aliases import import_families

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.hooks import BridgeHooks

# Architectures that megatron-core cannot compute, and why.
NOT_REPRESENTABLE = {
    "DeepseekV4ForCausalLM": (
        "its hyper-connections keep several residual streams per layer (hc_mult), and megatron-core's layers and the "
        "hand-over between its pipeline stages carry one"
    )
}

_BRIDGES: "dict[str, RegisteredBridge]" = {}


@dataclass(frozen=True)
class RegisteredBridge:
    """An entry of the table: an HF architecture, its bridge, and the arguments of `register_bridge`."""

    architecture: str
    bridge_class: "type[BridgeHooks]"
    target: type | str
    model_type: str | None


def register(entry: RegisteredBridge) -> None:
    """Enters a bridge in the table, replacing an earlier one for the same architecture."""
    _BRIDGES[entry.architecture] = entry


def registered_bridges() -> dict[str, RegisteredBridge]:
    """All bridges by HF architecture, including those of this package's families."""
    import_families()
    return dict(_BRIDGES)


def registered_for(bridge_class: "type[BridgeHooks]") -> RegisteredBridge:
    """The first registration of a bridge class."""
    for entry in _BRIDGES.values():
        if entry.bridge_class is bridge_class:
            return entry
    raise UnsupportedModelError(f"{bridge_class.__name__} is not registered: decorate it with register_bridge")


def find_bridge(hf_config: "PretrainedConfig") -> RegisteredBridge:
    """The bridge for the first architecture named in a config that has one.

    Raises:
        UnsupportedModelError: no architecture is named, or none that is named has a bridge.

    Example: `find_bridge(LlamaConfig(architectures=["LlamaForCausalLM"])).architecture` is `'LlamaForCausalLM'`.
    """
    bridges = registered_bridges()
    architectures = getattr(hf_config, "architectures", None) or []
    for architecture in architectures:
        if architecture in bridges:
            return bridges[architecture]
    named = ", ".join(architectures) if architectures else "none"
    name = getattr(hf_config, "name_or_path", "")
    for architecture in architectures:
        if architecture in NOT_REPRESENTABLE:
            raise UnsupportedModelError(
                f"{type(hf_config).__name__}{f' of {name}' if name else ''}: {architecture} cannot be converted: "
                f"{NOT_REPRESENTABLE[architecture]}. It needs layers of its own in megatron-core first."
            )
    raise UnsupportedModelError(
        f"{type(hf_config).__name__}{f' of {name}' if name else ''}: no bridge for architecture {named}. "
        f"Supported: {', '.join(sorted(bridges))}. "
        "`megatron-bridge models` lists them; a new one is a subclass of MegatronModelBridge."
    )
