"""megatron-core's HybridModel with what the provider's fields ask for."""

from megatron.core.models.hybrid.hybrid_model import HybridModel as CoreHybridModel

from megatron.bridge.models.transformer.model_extras import ModelExtras


class HybridModel(ModelExtras, CoreHybridModel):
    """A HybridModel with `ModelExtras`."""
