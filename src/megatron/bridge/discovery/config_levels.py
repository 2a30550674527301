"""A model's config, level by level: its own fields, those of its text model, and those of its encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron.bridge.errors import BridgeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from megatron.bridge.discovery.model_files import ModelFiles

TOP_LEVEL = "top level"
# Names that configs have for the config of a part. Models of speech and of several modalities keep the text model of
# what "thinks" one level further down.
_TEXT_NAMES = ("text_config", "llm_config", "language_config", "thinker_config")
_VISION_NAMES = ("vision_config", "vit_config", "visual_config", "vision_tower_config")
_OTHER_NAMES = ("audio_config", "speech_config", "talker_config", "token2wav_config", "code2wav_config", "codec_config")


class Fact(NamedTuple):
    """A field of the config.

    Attributes:
        level: where its value stands: "top level", "text_config", ..., or "default of" a config class of transformers.
    """

    name: str
    value: Any
    level: str


@dataclass
class LeveledConfig:
    """The config of a model as it is written, and as transformers reads it.

    Attributes:
        values: `config.json`.
        loaded: what transformers makes of it; `None` if it does not know the model.
        refusal: why it does not.
        kind: "LLM", "VLM" or "other": by the parts that the config has, not by names of models.
        kind_reason: what says so.
        text_level, vision_level: names of the levels of the text model and of the vision encoder, outermost first;
            empty for the top level, `None` for a part that the model does not have.
    """

    values: dict[str, Any]
    loaded: PretrainedConfig | None
    refusal: str | None
    kind: str = ""
    kind_reason: str = ""
    text_level: tuple[str, ...] | None = None
    vision_level: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.text_level = _level_of(self.values, _TEXT_NAMES)
        self.vision_level = _level_of(self.values, _VISION_NAMES)
        self.kind, self.kind_reason = self._kind()
        if self.text_level is None and ("hidden_size" in self.values or self.kind == "LLM"):
            self.text_level = ()

    def _kind(self) -> tuple[str, str]:
        sound = [
            name for level in _levels(self.values) for name in _OTHER_NAMES if isinstance(level.get(name), Mapping)
        ]
        if sound:
            return "other", f"audio or several modalities: it has {', '.join(dict.fromkeys(sound))}"
        if self.vision_level is not None:
            vision = ".".join(self.vision_level)
            if self.text_level is not None:
                return "VLM", f"it has {'.'.join(self.text_level)} and {vision}"
            if self.text("num_hidden_layers") and self.text("vocab_size"):
                return "VLM", f"it has {vision}, and the text model's fields at the top level"
            return "other", f"it has {vision} and no text model"
        if self.top("is_encoder_decoder") and self.top("is_encoder_decoder").value:  # type: ignore[union-attr]
            return "other", "an encoder and a decoder (is_encoder_decoder)"
        if self.text("type_vocab_size"):
            return "other", "an encoder of text (type_vocab_size)"
        layers = self.text("num_hidden_layers") or self.text("layers_block_type") or self.text("n_layer")
        if layers and self.text("vocab_size"):
            return "LLM", "text alone: no vision_config, no audio_config"
        return "other", "it has no text model (vocab_size and num_hidden_layers)"

    @property
    def text_config(self) -> PretrainedConfig | None:
        """transformers' config of the text model."""
        if self.loaded is None:
            return None
        found: Any = self.loaded
        names = self.text_level or (("text_config",) if hasattr(found, "text_config") else ())
        for name in names:
            found = getattr(found, name, None)
        return found if hasattr(found, "to_dict") else None

    def top(self, name: str) -> Fact | None:
        """A field of the top level, or its default."""
        return self._fact(name, (), self.loaded)

    def text(self, name: str) -> Fact | None:
        """A field of the text model, its default, or `None` if there is neither."""
        if self.text_level and (found := self._fact(name, self.text_level, None)):
            return found
        if not self.text_level and name in self.values:
            return Fact(name, self.values[name], TOP_LEVEL)
        return self._fact(name, self.text_level or (), self.text_config)

    def vision(self, name: str) -> Fact | None:
        """A field of the vision encoder as it is written."""
        return None if self.vision_level is None else self._fact(name, self.vision_level, None)

    def _fact(self, name: str, level: tuple[str, ...], loaded: Any) -> Fact | None:
        values = at_level(self.values, level)
        aliases = getattr(type(loaded), "attribute_map", None) or {}
        for written in (name, aliases.get(name), "torch_dtype" if name == "dtype" else None):
            if written is not None and values.get(written) is not None:
                return Fact(written, values[written], ".".join(level) or TOP_LEVEL)
        value = getattr(loaded, name, None)
        return None if value is None else Fact(name, _plain(value), f"default of {type(loaded).__name__}")


def load_levels(model: ModelFiles) -> LeveledConfig:
    """The config of a model. One that transformers does not know, or refuses, is described by its JSON alone."""
    from megatron.bridge.models.hf_pretrained.config import load_config

    try:
        return LeveledConfig(model.config, load_config(model.config_folder), None)
    except BridgeError as error:
        return LeveledConfig(model.config, None, str(error))


def at_level(values: Mapping[str, Any], level: tuple[str, ...]) -> Mapping[str, Any]:
    """The part of a config at a level; empty if there is none."""
    for name in level:
        part = values.get(name)
        values = part if isinstance(part, Mapping) else {}
    return values


def _level_of(values: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...] | None:
    for name in (*names, "thinker_config"):
        part = values.get(name)
        if isinstance(part, Mapping):
            below = _level_of(part, names) if name == "thinker_config" else None
            if name in names or below:
                return (name, *(below or ()))
    return None


def _levels(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield values
    for value in values.values():
        if isinstance(value, Mapping):
            yield from _levels(value)


def _plain(value: Any) -> Any:
    """A value as JSON would have it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
