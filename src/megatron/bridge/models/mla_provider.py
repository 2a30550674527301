"""`MLAModelProvider`: `GPTModelProvider` for models with multi-latent attention."""

from dataclasses import dataclass

from megatron.core.transformer.transformer_config import MLATransformerConfig

from megatron.bridge.models.gpt_provider import GPTModelProvider


@dataclass
class MLAModelProvider(GPTModelProvider, MLATransformerConfig):
    """An MLATransformerConfig that builds a GPTModel.

    Beyond the fields of its bases:

    Attributes:
        latent_layernorm_epsilon: of the norms of the query and key-value latents.
    """

    multi_latent_attention: bool = True
    normalization: str = "RMSNorm"
    latent_layernorm_epsilon: float = 1e-6
