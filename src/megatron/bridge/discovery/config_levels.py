"""A model's config, level by level: its own fields, those of its text model, and those of its encoders."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from megatron.bridge.errors import BridgeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from megatron.bridge.discovery.model_files import ModelFiles

type Json = bool | int | float | str | list[Json] | dict[str, Json] | None

TOP_LEVEL = "top level"
# What configs call the config of a part. Models of speech or of several modalities keep the text model one level
# further down, in the config of the part that "thinks".
_THINKER = "thinker_config"
_TEXT_NAMES = ("text_config", "llm_config", "language_config", _THINKER)
_VISION_NAMES = ("vision_config", "vit_config", "visual_config", "vision_tower_config")
_OTHER_NAMES = ("audio_config", "speech_config", "talker_config", "token2wav_config", "code2wav_config", "codec_config")


class Fact(NamedTuple):
    """A field of the config.

    Attributes:
        level: where the value comes from: "top level", "text_config", ..., or "default of" a config class of
            transformers.
    """

    name: str
    value: object
    level: str


@dataclass
class LeveledConfig:
    """The config of a model, as it is written and as transformers reads it.

    Attributes:
        values: the content of `config.json`.
        loaded: what transformers makes of it; `None` if it does not know the model.
        refusal: why transformers does not load it.
        kind: "LLM", "VLM" or "other", judged by the parts that the config has, not by any model's name.
        kind_reason: the parts that decided it.
        text_level, vision_level: names of the levels of the text model and of the vision encoder, outermost first;
            empty for the top level, `None` for a part that the model does not have.
    """

    values: Mapping[str, object]
    loaded: "PretrainedConfig | None"
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
        others = [
            name for level in _levels(self.values) for name in _OTHER_NAMES if isinstance(level.get(name), Mapping)
        ]
        if others:
            return "other", f"audio or several modalities: it has {', '.join(dict.fromkeys(others))}"
        if self.vision_level is not None:
            vision = ".".join(self.vision_level)
            if self.text_level is not None:
                return "VLM", f"it has {'.'.join(self.text_level)} and {vision}"
            if self.text("num_hidden_layers") and self.text("vocab_size"):
                return "VLM", f"it has {vision}, with the text model's fields at the top level"
            return "other", f"it has {vision} but no text model"
        if (fact := self.top("is_encoder_decoder")) and fact.value:
            return "other", "an encoder-decoder model (is_encoder_decoder)"
        if self.text("type_vocab_size"):
            return "other", "a text encoder (type_vocab_size)"
        layers = self.text("num_hidden_layers") or self.text("layers_block_type") or self.text("n_layer")
        if layers and self.text("vocab_size"):
            return "LLM", "text only: no vision_config, no audio_config"
        return "other", "no text model (vocab_size and num_hidden_layers are not both there)"

    @property
    def text_config(self) -> "PretrainedConfig | None":
        """transformers' config of the text model."""
        level: PretrainedConfig | None = self.loaded
        if level is None:
            return None
        for name in self.text_level or (("text_config",) if hasattr(level, "text_config") else ()):
            level = getattr(level, name, None)
        return level if hasattr(level, "to_dict") else None

    def top(self, name: str) -> Fact | None:
        """A field of the top level, or its default."""
        return self._fact(name, (), self.loaded)

    def text(self, name: str) -> Fact | None:
        """A field of the text model or its default; `None` if there is neither."""
        if self.text_level and (fact := self._fact(name, self.text_level, None)):
            return fact
        if not self.text_level and name in self.values:
            return Fact(name, self.values[name], TOP_LEVEL)
        return self._fact(name, self.text_level or (), self.text_config)

    def vision(self, name: str) -> Fact | None:
        """A field of the vision encoder, if it is stated."""
        return None if self.vision_level is None else self._fact(name, self.vision_level, None)

    def _fact(self, name: str, level: tuple[str, ...], loaded: "PretrainedConfig | None") -> Fact | None:
        values = at_level(self.values, level)
        aliases: Mapping[str, str] = getattr(type(loaded), "attribute_map", None) or {}
        for written in (name, aliases.get(name), "torch_dtype" if name == "dtype" else None):
            if written is not None and values.get(written) is not None:
                return Fact(written, values[written], ".".join(level) or TOP_LEVEL)
        value = getattr(loaded, name, None)
        return None if value is None else Fact(name, as_json(value), f"default of {type(loaded).__name__}")


def load_levels(model: "ModelFiles") -> LeveledConfig:
    """The config of a model. If transformers does not know or refuses it, only its JSON is used."""
    from megatron.bridge.models.hf_pretrained.config import load_config

    try:
        return LeveledConfig(model.config, load_config(model.config_folder), None)
    except BridgeError as error:
        return LeveledConfig(model.config, None, str(error))


def at_level(values: Mapping[str, object], level: tuple[str, ...]) -> Mapping[str, object]:
    """The part of a config at a level; empty if there is none."""
    for name in level:
        part = values.get(name)
        values = part if isinstance(part, Mapping) else {}
    return values


def _level_of(values: Mapping[str, object], names: tuple[str, ...]) -> tuple[str, ...] | None:
    for name in (*names, _THINKER):
        part = values.get(name)
        if isinstance(part, Mapping):
            below = _level_of(part, names) if name == _THINKER else None
            if name in names or below:
                return (name, *(below or ()))
    return None


def _levels(values: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    yield values
    for value in values.values():
        if isinstance(value, Mapping):
            yield from _levels(value)


def as_json(value: object) -> Json:
    """A value as JSON would have it: records become objects, and what JSON lacks becomes text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(part) for part in value]
    return str(value)
