"""The table of supported architectures, filled by the families as they are imported."""

import difflib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.bridge.errors import UnsupportedConfigError, UnsupportedModelError
from megatron.bridge.models.hf_pretrained.config_aliases import import_families

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig

    from megatron.bridge.models.conversion.hooks import BridgeHooks

# Architectures that megatron-core cannot compute, and why.
NOT_REPRESENTABLE = {
    "DeepseekV4ForCausalLM": (
        "its hyper-connections keep several residual streams per layer (hc_mult), and megatron-core's layers and the "
        "hand-over between its pipeline stages carry one"
    )
}

_MAX_NEAREST = 3
# What the name of an architecture says of its head rather than of its layers.
_HEAD = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")

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


def supported_architecture(architectures: Iterable[str], model_type: object) -> str | None:
    """The architecture, among those that have a bridge, as which a config is read; `None` if there is none.

    The first that is named counts. If only the base model is named, or nothing, or the same in other letters
    ("LLaMAForCausalLM"), the `model_type` decides, as for transformers' `AutoModelForCausalLM`.

    Example: `supported_architecture(["LlamaModel"], "llama")` is `'LlamaForCausalLM'`.
    """
    bridges, names = registered_bridges(), list(architectures)
    named = next((name for name in names if name in bridges), None)
    of_type = [entry.architecture for entry in bridges.values() if entry.model_type == model_type]
    if named is not None or len(of_type) != 1:
        return named
    causal = of_type[0].lower()
    same = {causal, causal.replace("forcausallm", "model")}
    return of_type[0] if all(name.lower() in same for name in names) else None


def find_bridge(hf_config: "PretrainedConfig") -> RegisteredBridge:
    """The bridge for a config (see `supported_architecture`).

    Raises:
        UnsupportedModelError: there is none.
        UnsupportedConfigError: the config is that of a model with several parts, of which the architecture is one.

    Example: `find_bridge(LlamaConfig(architectures=["LlamaForCausalLM"])).architecture` is `'LlamaForCausalLM'`.
    """
    bridges = registered_bridges()
    architectures = getattr(hf_config, "architectures", None) or []
    supported = supported_architecture(architectures, getattr(hf_config, "model_type", None))
    if supported is None:
        raise no_bridge(architectures, getattr(hf_config, "name_or_path", ""), type(hf_config).__name__)
    entry = bridges[supported]
    if is_of_whole_model(hf_config, entry):
        subject = " of ".join(filter(None, (type(hf_config).__name__, getattr(hf_config, "name_or_path", ""))))
        raise UnsupportedConfigError(
            f"{subject}: {supported} has the model_type {entry.model_type!r}, but config.json says "
            f"{hf_config.model_type!r}, with which transformers reads text_config alone. If this is a text "
            f"model alone, set model_type to {entry.model_type!r} in config.json."
        )
    return entry


def no_bridge(architectures: "Sequence[str]", name: str = "", config_class: str = "") -> UnsupportedModelError:
    """The error for architectures that have no bridge: why one cannot have any, or which have similar names.

    Args:
        architectures: those that the config names.
        name: the model's folder or hub id.
        config_class: the class of its config.
    """
    subject = " of ".join(filter(None, (config_class, name))) or "the config"
    for architecture in architectures:
        if architecture in NOT_REPRESENTABLE:
            return UnsupportedModelError(
                f"{subject}: {architecture} cannot be converted: {NOT_REPRESENTABLE[architecture]}. It needs layers of "
                "its own in megatron-core first."
            )
    named = ", ".join(architectures) if architectures else "none (it states no architectures)"
    near = ", ".join(nearest_names(architectures))
    similar = f"Supported ones with a similar name: {near}" if near else "No supported one has a similar name"
    return UnsupportedModelError(
        f"{subject}: no bridge for architecture {named}. {similar}. Run `megatron-bridge inspect "
        f"{shlex.quote(name) if name else 'MODEL'}` to see which family is nearest to its config and weights, and what "
        "is missing; `megatron-bridge models` lists what is supported."
    )


def nearest_names(architectures: "Sequence[str]") -> list[str]:
    """Up to three architectures that have a bridge and a name like those given, the most similar first.

    `nearest_names(["Qwen4ForCausalLM"])` begins with "Qwen2ForCausalLM" or another of Qwen's.
    """
    known = {_HEAD.sub("", name).lower(): name for name in sorted(registered_bridges())}
    found: dict[str, None] = {}
    for architecture in architectures:
        wanted = _HEAD.sub("", architecture).lower()
        found |= dict.fromkeys(known[near] for near in difflib.get_close_matches(wanted, known, _MAX_NEAREST))
    return list(found)[:_MAX_NEAREST]


def is_of_whole_model(hf_config: "PretrainedConfig", entry: RegisteredBridge) -> bool:
    """Whether a config is that of a model with several parts, although the architecture is its text model alone.

    Example: `model_type` "gemma3" instead of "gemma3_text", with the architecture Gemma3ForCausalLM.
    """
    text_type = getattr(getattr(hf_config, "text_config", None), "model_type", None)
    return text_type is not None and text_type == entry.model_type != hf_config.model_type
