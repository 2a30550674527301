"""megatron-core's HybridModel with what the provider's fields ask for, and what it lacks of a GPTModel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.models.hybrid.hybrid_model import HybridModel as CoreHybridModel

from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.gpt_names import gpt_name
from megatron.bridge.models.transformer.model_extras import ModelExtras


class HybridModel(ModelExtras, CoreHybridModel):
    """A HybridModel with `ModelExtras`, which keeps `rotary_percent` and rotates as `rotary_interleaved` says.

    Args:
        letters_per_layer: of a decoder that could be a GPTModel: 2 if each of its layers is two of the stack, else 1;
            `None` if the stack's layers are the model's own.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *args: Any,
        rotary_percent: float = 1.0,
        letters_per_layer: int | None = None,
        **kwargs: Any,
    ) -> None:
        with _stages_of_pattern(config):
            super().__init__(config, *args, rotary_percent=rotary_percent, **kwargs)
        self.rotary_percent = rotary_percent
        self.letters_per_layer = letters_per_layer
        if hasattr(self, "rotary_pos_emb"):
            self.rotary_pos_emb.rotary_interleaved = config.rotary_interleaved
        self.decoder.number_layers()
        for prediction in self.mtp.layers if self.mtp_process else ():
            for number, layer in enumerate(prediction.mtp_model_layer.layers, 1):
                layer.layer_number = number

    def canonical_name(self, name: str) -> str:
        """The name that a GPTModel gives to a weight, if this decoder could be one."""
        return name if self.letters_per_layer is None else gpt_name(name, self.letters_per_layer)


@contextmanager
def _stages_of_pattern(config: DecoderConfig) -> Iterator[None]:
    """Hides the sizes of uneven stages, which the pattern states."""
    names = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    hidden = {name: getattr(config, name) for name in names}
    is_in_pattern = hidden if "|" in getattr(config, "hybrid_layer_pattern", "|") else {}
    for name in is_in_pattern:
        setattr(config, name, None)
    try:
        yield
    finally:
        for name, value in is_in_pattern.items():
            setattr(config, name, value)
