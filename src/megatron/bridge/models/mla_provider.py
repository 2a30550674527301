"""`MLAModelProvider`: `GPTModelProvider` for models with multi-latent attention."""

from dataclasses import dataclass

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.decoder_config import MLADecoderConfig


@dataclass
class MLAModelProvider(MLADecoderConfig, GPTModelProvider):
    """An `MLADecoderConfig` that builds a GPTModel."""
