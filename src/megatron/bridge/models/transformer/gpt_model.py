"""megatron-core's GPTModel with what the provider's fields ask for."""

from megatron.core.models.gpt import GPTModel as CoreGPTModel

from megatron.bridge.models.transformer.model_extras import ModelExtras


class GPTModel(ModelExtras, CoreGPTModel):
    """A GPTModel with `ModelExtras`."""
